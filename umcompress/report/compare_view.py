"""A comparison of runs as tables."""

from __future__ import annotations

import json
import shlex
from typing import Any

from umcompress.documents.base import TASKS
from umcompress.report.benchmarks_view import value_text
from umcompress.report.compare import ComparedNumber, ComparedRun, Comparison
from umcompress.report.report_view import change_text, loss_notes, score_text, speed_text, step_name
from umcompress.report.table import Table, View, number_columns, short_number, text_column

# Beside each other in a table of 80 columns.
_MOST_RUNS = 4


def compare_view(comparison: Comparison) -> View:
    """The runs, their results side by side, the steps of each, and what their recipes say differently."""
    parts: list[Table | str] = [_legend(run) for run in comparison.runs]
    parts += [*_results(comparison), *_evaluations(comparison)]
    parts += [table for run in comparison.runs for table in _steps(run)]
    if comparison.differences:
        parts.append(_differences(comparison))
    elif len(comparison.runs) > 1:
        parts += ["", "the recipes say the same"]
    return (*parts, f"next: umcompress report {shlex.quote(comparison.runs[-1].name)} --html report.html")


def _legend(run: ComparedRun) -> str:
    stopped = f"; stopped at {run.stopped}" if run.stopped else ""
    return f"{run.label} = {run.name} ({run.model}{stopped})"


def _results(comparison: Comparison) -> tuple[Table, Table]:
    """Scores, and size with speed: together they are wider than 80 columns."""
    rows, sizes, notes = [], [], ["± half of the 95 % interval; change from A, * beyond noise (95 %)"]
    notes += loss_notes([run.steps[run.result] for run in comparison.runs])
    slow = []
    marks = {True: "best", False: "beaten", None: ""}
    for run in comparison.runs:
        step = run.steps[run.result]
        pairs = [(score_text(step.scores.get(task)), change_text(run.changes.get(task))) for task in TASKS]
        scores = [cell for pair in pairs for cell in pair]
        speeds = [speed_text(step, task) for task in TASKS]
        state = "not comparable" if run.reasons else marks[run.pareto]
        rows.append((run.label, *scores, state))
        sizes.append((run.label, short_number(step.parameters.total), *speeds))
        notes += [f"{run.label} is not comparable with A: {reason}" for reason in run.reasons]
        slow += [
            f"{run.label}'s speeds are not comparable with A's: {reason}" for reason in run.speed_reasons
        ]
    if comparison.objectives:
        notes.append(f"best: Pareto-optimal in {', '.join(comparison.objectives)}")
    score_columns = number_columns("understanding", "change", "generation", "change")
    columns = (text_column("run"), *score_columns, text_column("Pareto"))
    size_columns = (text_column("run"), *number_columns("params", "speed u", "speed g"))
    return (
        Table("Results", columns, tuple(rows), tuple(notes)),
        Table("Size and speed of the results", size_columns, tuple(sizes), tuple(slow)),
    )


def _evaluations(comparison: Comparison) -> list[Table]:
    """A row a number, a column a run; of many runs, the first in each of several tables."""
    if not comparison.numbers:
        return []
    places = list(range(1, len(comparison.runs)))
    groups = [places[start : start + _MOST_RUNS - 1] for start in range(0, len(places), _MOST_RUNS - 1)] or [[]]
    tables, note = [], "± half of the 95 % interval; * beyond noise from A (95 %)"
    for group in groups:
        shown = [0, *group]
        rows = tuple((_number_name(row), *(_number_cell(row, place) for place in shown)) for row in comparison.numbers)
        columns = (text_column("number"), *number_columns(*(comparison.runs[place].label for place in shown)))
        tables.append(Table("Evaluations", columns, rows, (note,)))
    return tables


def _number_name(row: ComparedNumber) -> str:
    return f"{row.evaluation} {row.task}" if row.number is None else f"  {row.number}"


def _number_cell(row: ComparedNumber, place: int) -> str:
    """A blank in the place of a star keeps columns straight."""
    change = row.changes[place]
    mark = "" if place == 0 else "*" if change is not None and change.beyond_noise else " "
    return value_text(row.values[place]) + mark


def _steps(run: ComparedRun) -> tuple[Table, Table]:
    scores, sizes = [], []
    for step in run.steps:
        name = step_name(step)
        pairs = [(score_text(step.scores.get(task)), change_text(step.changes.get(task))) for task in TASKS]
        scores.append((name, *(cell for pair in pairs for cell in pair)))
        active = [short_number(step.parameters.active[t]) if t in step.parameters.active else "-" for t in TASKS]
        speeds = [speed_text(step, task) for task in TASKS]
        total = (short_number(step.parameters.total), f"{short_number(step.bytes.total)}B")
        sizes.append((name, *total, *active, *speeds))
    score_names = ("understanding", "change", "generation", "change")
    size_names = ("params", "bytes", "act. u", "act. g", "speed u", "speed g")
    marked = any(flag.startswith("no_speed:") for step in run.steps for flag in step.flags)
    notes = ("! less work than in the row above, yet no faster beyond noise",) if marked else ()
    return (
        Table(
            f"{run.label}: scores, with the change from its baseline",
            (text_column("step"), *number_columns(*score_names)),
            tuple(scores),
        ),
        Table(f"{run.label}: size and speed", (text_column("step"), *number_columns(*size_names)), tuple(sizes), notes),
    )


def _differences(comparison: Comparison) -> Table:
    columns = (text_column("key"), *(text_column(run.label) for run in comparison.runs))
    rows = tuple((row.key, *(_value(value) for value in row.values)) for row in comparison.differences)
    return Table("What the recipes say differently", columns, rows)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
