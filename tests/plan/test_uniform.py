"""`uniform: true` refuses what an ordinary configuration could not say, and changes nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_bagel import write_recipe

from umcompress.errors import RecipeError
from umcompress.plan.command import plan as plan_command

CHANNELS = {"pass": "channel_prune", "component": "generation", "score": "magnitude", "keep_ratio": 0.5}
HEADS = {"pass": "head_prune", "component": "generation", "score": "magnitude", "keep_ratio": 0.5}


@pytest.mark.parametrize(("step", "unit"), [(CHANNELS, "channels"), (HEADS, "key_value_groups")])
def test_layers_that_would_differ_are_refused(
    tiny_bagel: Path, tmp_path: Path, step: dict[str, Any], unit: str
) -> None:
    def planned(**options: Any) -> Any:
        return plan_command(str(write_recipe(tmp_path, tiny_bagel, step | options, evaluate=[]))).steps[0]

    some = planned(layers="0-1", uniform=True)
    assert some.problem is not None and f"{unit} would differ by layer" in some.problem
    assert "layers: all" in some.problem and " in 1" in some.problem and " in 2" in some.problem
    every = planned(uniform=True)
    assert every.problem is None and every.sites == planned().sites
    assert planned(layers="0-1").problem is None


def test_layers_that_differ_from_the_start_are_not_sent_to_all_of_them(tiny_bagel: Path, tmp_path: Path) -> None:
    first = CHANNELS | {"layers": "0-1"}
    plan = plan_command(str(write_recipe(tmp_path, tiny_bagel, first, CHANNELS | {"uniform": True}, evaluate=[])))
    problem = plan.steps[1].problem
    assert problem is not None and "do: leave `uniform` out" in problem and "layers: all" not in problem


def test_a_second_cut_may_make_layers_alike_again(tiny_bagel: Path, tmp_path: Path) -> None:
    first = CHANNELS | {"layers": "0-1"}
    steps = (first, CHANNELS | {"layers": "2", "uniform": True})
    plan = plan_command(str(write_recipe(tmp_path, tiny_bagel, *steps, evaluate=[])))
    assert [step.problem for step in plan.steps] == [None, None]


def test_one_ranking_over_all_layers_is_not_uniform(tiny_bagel: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="allocation: global gives each layer a width of its own"):
        plan_command(str(write_recipe(tmp_path, tiny_bagel, CHANNELS | {"allocation": "global", "uniform": True})))
