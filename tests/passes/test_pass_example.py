"""The pass of docs/my_pass.py, named in a recipe by path: validated, planned, applied."""

from __future__ import annotations

from functools import partial

import pytest
from pico_passes import bench, inputs_of
from places import DOCS

from umcompress.documents.plan import KeepChannels
from umcompress.errors import PlanError, RecipeError
from umcompress.extend import Statistics
from umcompress.extend.pass_base import Pass
from umcompress.extend.registry import find_evaluation, find_pass
from umcompress.recipe.recipe import parse_recipe

RECIPE = """
model: bagel-mini
steps:
  - pass: my_pass.py:QuietChannels
    component: understanding
    share: {share}
"""


def read(share: str) -> Pass:
    recipe = parse_recipe(
        RECIPE.format(share=share), "mine.yaml", partial(find_pass, base=DOCS), find_evaluation
    )
    step = recipe.steps[0].pass_
    assert isinstance(step, Pass)
    return step


def test_it_is_short() -> None:
    code = (DOCS / "my_pass.py").read_text().split("class ")[1].splitlines()
    assert len(code) <= 24


def test_it_plans_and_applies() -> None:
    pico = bench()
    proposal = pico.plan(read("0.4"))
    sites = {site.path: site for site in pico.graph.feed_forwards(component="understanding")}
    assert proposal.plan.edits
    for edit in proposal.plan.edits:
        assert isinstance(edit, KeepChannels)
        strength = inputs_of(pico, sites[edit.site].consumer).abs().mean(0)
        assert edit.keep == tuple((strength >= 0.4 * strength.max()).nonzero().flatten().tolist())
    assert pico.apply(proposal)(*pico.feeds[0])[0].isfinite().all()


def test_its_options_are_checked_like_any_others() -> None:
    with pytest.raises(RecipeError, match=r"mine.yaml:6[\s\S]*share"):
        read("1.5")


def test_nothing_quiet_is_an_error_and_a_dry_run_works() -> None:
    pico = bench()
    with pytest.raises(PlanError, match="every channel fires more"):
        pico.plan(read("0.000001"))
    assert read("0.1").plan(pico.graph, Statistics(dry=True)).plan.edits
