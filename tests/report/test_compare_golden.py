"""`compare` of five unlike runs, as a text: 60 lines, steps by name and pass, no defaults, no word broken."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path
from typing import Any

from report_fakes import report, step

from umcompress.documents.base import Task
from umcompress.documents.report import Report, step_report
from umcompress.documents.scores import Score, score_of_grades
from umcompress.report import terminal
from umcompress.report.compare import compare
from umcompress.report.compare_view import compare_view
from umcompress.report.recipe_differences import recipe_differences

GOLDEN = Path(__file__).parents[1] / "support" / "data" / "compare_five.txt"
LONG = "runs/a/folder/that/lies/deep/in/the/file/system/and/has/a/name/longer/than/a/line/of/80"


def drop(**options: Any) -> dict[str, Any]:
    return {"pass": "layer_drop", "component": "understanding", "unit": "attention", "score": "cosine", "seed": 0,
            "keep_ratio": 0.75, "greedy": False, "layers": "all"} | options  # fmt: skip


def prune(**options: Any) -> dict[str, Any]:
    return {"pass": "channel_prune", "component": "generation", "score": "activation", "repair": "none",
            "keep_ratio": 0.5, "layers": "all"} | options  # fmt: skip


HEAD = {"model": "bagel-mini", "calibration": {"task": "generation", "samples": 64, "seed": 0}, "output": "x"}
RECIPES: list[dict[str, Any]] = [
    {**HEAD, "steps": [drop(), prune()]},
    {**HEAD, "steps": [prune(repair="least_squares")]},
    {**HEAD, "calibration": {"task": "generation", "samples": 16, "seed": 0}, "steps": [drop(keep_ratio=0.5), prune()]},
    {**HEAD, "steps": [prune(component="understanding", keep_ratio=0.25), prune(score="random")]},
    {**HEAD, "steps": [
        {"pass": "moe_split", "name": "experts", "component": "generation", "experts": 32, "active": 16},
        drop(unit="block", keep_ratio=0.9),
    ]},
]  # fmt: skip


def scored(place: int, task: Task) -> Score:
    draw = random.Random(f"{place}/{task}")
    base = random.Random(task)
    grades = {kind: [float(base.random() < 0.9) for _ in range(100)] for kind in ("colour", "count")}
    kept = {kind: [grade * (draw.random() > 0.03 * place) for grade in of_it] for kind, of_it in grades.items()}
    return score_of_grades(kept, "these", average="kinds")


def run(place: int) -> Report:
    tasks: tuple[Task, ...] = ("understanding", "generation")
    size = 6_312_000 - 700_000 * place
    steps: list[Any] = []
    for number in range(2):
        scores = {task: scored(place * number, task) for task in tasks}
        one = step(
            "01-cut" if number else "baseline", "cut" if number else None, (0.9, 0.9), size if number else 6_312_000,
            (1 + 0.1 * place * number, 1.0), evaluations={"scenes": scores},
        ).model_copy(update={"scores": scores})  # fmt: skip
        steps.append(step_report(one, steps[0]) if steps else one)
    return report(steps=tuple(steps), recipe=RECIPES[place], recipe_name=f"r{place}")


def five() -> list[tuple[str, Report]]:
    return [(LONG if place == 3 else f"runs/r{place}", run(place)) for place in range(5)]


def test_five_unlike_runs_are_sixty_lines() -> None:
    text = terminal.text(compare_view(compare(five())))
    if os.environ.get("UMCOMPRESS_WRITE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= 60 and max(len(line) for line in lines if LONG not in line) <= 80
    assert any(LONG in line for line in lines)


def test_piped_text_is_not_wrapped() -> None:
    piped = io.StringIO()
    terminal.show(compare_view(compare(five())), piped)
    assert all(note in piped.getvalue().splitlines() for note in _notes(five()))


def _notes(runs: list[tuple[str, Report]]) -> list[str]:
    return [note for part in compare_view(compare(runs)) if not isinstance(part, str) for note in part.notes]


def test_everything_is_there_on_demand() -> None:
    found = compare(five())
    short, whole = terminal.text(compare_view(found)), terminal.text(compare_view(found, everything=True))
    assert "E: size and speed" in whole and "E: size and speed" not in short


def test_steps_are_aligned_and_defaults_left_out() -> None:
    rows = {(row.step, row.key): row.values for row in recipe_differences(RECIPES)}
    assert rows[None, "calibration.samples"] == (64, 64, 16, 64, 64)
    assert rows["layer_drop understanding attention", "keep_ratio"] == (0.75, "-", 0.5, "-", "-")
    assert rows["channel_prune generation", "repair"] == ("none", "least_squares", "none", "none", "-")
    assert rows["experts (moe_split)", "active"] == ("-", "-", "-", "-", 16)
    # Defaults, or the same wherever the step is and a default.
    assert not {key for _, key in rows} & {"greedy", "seed", "layers", "pass", "name", "output"}
