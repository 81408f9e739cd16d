"""Tasks of which a step changed no weight keep scores and speed; `measure` says what is timed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from recipe_fakes import parse
from tiny_bagel import write_recipe

from umcompress.cli.main import main
from umcompress.documents.base import Task
from umcompress.documents.report import Size, StepReport
from umcompress.run.kept import Above

PRUNE = {"pass": "channel_prune", "score": "magnitude", "keep_ratio": 0.5}
STEPS = (
    PRUNE | {"component": "generation", "name": "painter"},
    PRUNE | {"component": "understanding", "name": "reader", "after": "baseline"},
    PRUNE | {"component": "generation", "name": "both"},
)
SCENES = [{"scenes": {"prompts": 6, "questions": 5}}]


def run(folder: Path, model: Path, *steps: dict[str, Any], **keys: Any) -> list[dict[str, Any]]:
    recipe = write_recipe(folder, model, *steps, **{"evaluate": SCENES} | keys)
    assert main(["apply", str(recipe), "-o", str(folder / "run")]) == 0
    found: list[dict[str, Any]] = json.loads((folder / "run" / "report.json").read_text())["steps"]
    return found


def test_what_a_step_left_alone_is_not_measured_again(
    tiny_bagel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = run(tmp_path, tiny_bagel, *STEPS)
    # Prompts are read with the weights of understanding, so a change of those touches both tasks.
    assert [step["kept"] for step in steps] == [{}, {"understanding": "baseline"}, {}, {"understanding": "reader"}]
    for step, source in ((1, 0), (3, 2)):
        assert steps[step]["scores"]["understanding"] == steps[source]["scores"]["understanding"]
        assert steps[step]["speed"]["understanding"] == steps[source]["speed"]["understanding"]
        assert steps[step]["evaluations"]["scenes"].keys() == {"understanding", "generation"}
    answers = {path.parent.parent.name for path in (tmp_path / "run").rglob("answers.jsonl")}
    assert answers == {"00-baseline", "02-reader"}
    assert "both: understanding as in reader, same weights" in capsys.readouterr().out
    # What was kept is what would have been measured.
    again = ["evaluate", str(tmp_path / "run"), "--evaluation", "scenes:prompts=6,questions=5"]
    assert main([*again, "--format", "json"]) == 0
    measured = json.loads(capsys.readouterr().out)["steps"][0]["scores"]
    assert measured == steps[-1]["scores"]


def test_only_what_is_asked_for_is_timed(tiny_bagel: Path, tmp_path: Path) -> None:
    two = "  - {pass: cut, component: generation, keep_ratio: 0.5}\n" * 2
    words = ("off", "last", "each")
    recipes = {speed: parse(f"model: m\nmeasure: {{speed: {speed}}}\nsteps:\n{two}") for speed in words}
    timed = {speed: [recipe.times(index) for index in range(3)] for speed, recipe in recipes.items()}
    assert timed == {"off": [False] * 3, "last": [True, False, True], "each": [True] * 3}
    assert parse(f"model: m\nsteps:\n{two}").resolved()["measure"] == {"scores": "each", "speed": "each"}
    untimed = parse(f"model: m\nmeasure: {{speed: false}}\nsteps:\n{two}")
    assert untimed.resolved()["measure"] == {"scores": "each", "speed": "off"}
    steps = run(tmp_path, tiny_bagel, *STEPS[:1], evaluate=[], measure={"speed": "off"})
    assert [step["speed"] for step in steps] == [{}, {}]


def test_a_weight_that_no_task_is_seen_to_read_belongs_to_all() -> None:
    reads: dict[Task, frozenset[str]] = {"understanding": frozenset({"u", "s"}), "generation": frozenset({"g", "s"})}
    origins = {name: (name, 0) for name in ("u", "g", "s", "decoder")}
    above = Above(StepReport(name="first", parameters=Size(total=4), bytes=Size(total=4)), reads, origins)
    assert above.kept(reads, origins) == dict.fromkeys(reads, "first")
    assert above.kept(reads, origins | {"g": ("g", 1)}) == {"understanding": "first"}
    assert above.kept(reads, origins | {"s": ("s", 1)}) == {}
    assert above.kept(reads, origins | {"decoder": ("decoder", 1)}) == {}
    # A block that is gone: what is left has the old names, and others' values.
    without: dict[Task, frozenset[str]] = {"understanding": frozenset({"s"}), "generation": reads["generation"]}
    assert above.kept(without, {name: origin for name, origin in origins.items() if name != "u"}) == {
        "generation": "first"
    }


def test_only_what_is_asked_for_is_scored(
    tiny_bagel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step between is not scored unless it has a gate; the last one is scored as a whole, as without `last`."""
    gated = {**STEPS[0], "stop_if": {"generation_drop": 1.0}}
    for name, first in (("plain", STEPS[0]), ("gated", gated)):
        (tmp_path / name).mkdir()
        steps = run(tmp_path / name, tiny_bagel, first, *STEPS[1:], measure={"speed": "off", "scores": "last"})
        scored = [sorted(step["scores"]) for step in steps]
        both = ["generation", "understanding"]
        assert scored == [both, both if name == "gated" else [], [], both]
        assert steps[1]["kept"] == {"understanding": "baseline"}
        # The step above has no score that could be kept.
        assert steps[3]["kept"] == {}
    capsys.readouterr()
    again = ["evaluate", str(tmp_path / "plain" / "run"), "--evaluation", "scenes:prompts=6,questions=5"]
    assert main([*again, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"][0]["scores"] == steps[-1]["scores"]
    assert main(["report", str(tmp_path / "plain" / "run"), "--html", str(tmp_path / "page.html")]) == 0
