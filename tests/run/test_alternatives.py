"""Steps with `after`: alternatives in one recipe, each measured against the same baseline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from recipe_fakes import parse
from tiny_bagel import write_recipe

from umcompress.cli.main import main
from umcompress.errors import RecipeError
from umcompress.models.source import open_source
from umcompress.plan.command import plan as plan_command
from umcompress.run.apply import written_unsaid

STEPS = """\
model: m
steps:
  - {pass: cut, name: half, component: generation, keep_ratio: 0.5}
  - {pass: cut, name: third, component: generation, keep_ratio: 0.3, after: baseline}
  - {pass: mend, name: mended, after: half}
  - {pass: mend, name: again}
"""


def test_each_step_knows_what_it_starts_from() -> None:
    recipe = parse(STEPS)
    assert recipe.parents() == (0, 0, 1, 3)
    assert [step.get("after") for step in recipe.resolved()["steps"]] == [None, "baseline", "half", None]


@pytest.mark.parametrize(("name", "near"), [("halff", "half"), ("again", "half"), ("mended", "half")])
def test_after_names_an_earlier_step(name: str, near: str) -> None:
    with pytest.raises(RecipeError, match=f"earlier step, found \"{name}\"") as caught:
        parse(STEPS.replace("after: half", f"after: {name}"))
    assert "r.yaml:5" in str(caught.value) and near in str(caught.value)


PRUNE = {"pass": "channel_prune", "component": "generation", "score": "magnitude"}


def test_a_dry_run_follows_the_branches(tiny_bagel: Path, tmp_path: Path) -> None:
    steps = (
        PRUNE | {"keep_ratio": 0.5, "name": "half"},
        PRUNE | {"keep_ratio": 0.75, "name": "more", "after": "baseline"},
        {"pass": "channel_prune", "component": "understanding", "score": "magnitude", "keep_ratio": 0.5,
         "after": "half"},
    )
    first, second, third = plan_command(str(write_recipe(tmp_path, tiny_bagel, *steps))).steps
    assert first.before == second.before and first.after == third.before
    assert first.after.total < second.after.total and third.after.total < first.after.total


def test_a_run_ends_with_the_last_branch(tiny_bagel: Path, tmp_path: Path) -> None:
    steps = (
        PRUNE | {"keep_ratio": 0.5, "name": "half"},
        PRUNE | {"keep_ratio": 0.75, "name": "more", "after": "baseline"},
    )
    recipe = write_recipe(tmp_path, tiny_bagel, *steps)
    assert main(["apply", str(recipe), "-o", str(tmp_path / "both")]) == 0
    report = json.loads((tmp_path / "both" / "report.json").read_text())
    assert [step["after"] for step in report["steps"]] == [None, None, "baseline"]
    assert list(json.loads((tmp_path / "both" / "plan.json").read_text())) == ["more"]
    alone = write_recipe(tmp_path, tiny_bagel, steps[1] | {"after": "baseline"})
    assert main(["apply", str(alone), "-o", str(tmp_path / "alone")]) == 0
    models = [open_source(str(tmp_path / run / "model")).load().state_dict() for run in ("both", "alone")]
    assert all(models[0][name].equal(tensor) for name, tensor in models[1].items())
    assert models[0].keys() == models[1].keys()


def test_the_alternative_that_is_named_is_written(
    tiny_bagel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Naming another one writes that, from the steps that are there."""
    steps = (
        PRUNE | {"keep_ratio": 0.5, "name": "half"}, PRUNE | {"keep_ratio": 0.75, "name": "more", "after": "baseline"},
    )  # fmt: skip
    run = tmp_path / "run"

    def written(**keys: str) -> tuple[str, int]:
        recipe = write_recipe(tmp_path, tiny_bagel, *steps, evaluate=[], **keys)
        assert main(["apply", str(recipe), "-o", str(run), "--format", "json"]) == 0
        report = json.loads(capsys.readouterr().out)
        return report["written"], report["checkpoint"]["parameters"]

    name, smaller = written(write="half")
    assert name == "half" and list(json.loads((run / "plan.json").read_text())) == ["half"]
    stamp = (run / "steps" / "02-more" / "step.json").stat().st_mtime_ns
    name, larger = written(write="more")
    assert name == "more" and smaller < larger
    assert (run / "steps" / "02-more" / "step.json").stat().st_mtime_ns == stamp
    assert '"write": "more"' in (run / "recipe.yaml").read_text()


def test_write_names_a_step() -> None:
    with pytest.raises(RecipeError, match=r"write: should name a step, found \"thrid\"") as caught:
        parse(STEPS.replace("steps:", "write: thrid\nsteps:"))
    assert "third" in str(caught.value)
    recipe = parse(STEPS.replace("steps:", "write: third\nsteps:"))
    assert recipe.written() == 2 and recipe.written(done=1) == 1 and parse(STEPS).written() == 4
    # Alternatives of which none is named: a warning.
    assert written_unsaid(recipe) is None
    assert "say `write: again`" in str(written_unsaid(parse(STEPS)))
