"""Comparisons as tables: results side by side; what the recipes say differently; every step of every run on demand."""

from __future__ import annotations

import json
import shlex
from bisect import bisect_right
from typing import Any

from umcompress.documents.base import TASKS
from umcompress.documents.scores import Change
from umcompress.report import terminal
from umcompress.report.compare import ComparedNumber, ComparedRun, Comparison
from umcompress.report.recipe_differences import Difference
from umcompress.report.report_view import speed_text
from umcompress.report.scores_view import (
    Entry,
    change_of,
    entries,
    entry_name,
    is_share,
    number_text,
    score_cells,
    score_of,
)
from umcompress.report.step_tree import named_steps
from umcompress.report.table import Table, View, number_columns, parameters_cell, short_number, size_text, text_column

# Numbers of runs that stand beside each other in a table of 80 columns.
_MOST_RUNS = 6
MOST_LINES = 60


def compare_view(comparison: Comparison, everything: bool = False) -> View:
    """Results, sizes, and what the recipes say differently, in at most 60 lines of 80 columns; with `everything` all
    numbers, and the steps of each run.
    """
    last = shlex.quote(comparison.runs[-1].name)
    closing = f"next: umcompress report {last} --html report.html"
    if everything:
        steps = [table for run in comparison.runs for table in _steps(run)]
        return (*_head(comparison), *_numbers(comparison), *steps, *_differences(comparison, None), closing)
    head, numbers = _head(comparison), _numbers(comparison)
    fitting = [table for count, table in enumerate(numbers, 1) if _lines((*head, *numbers[:count])) <= MOST_LINES - 12]
    left = ["the rest of the evaluations' numbers: --all"] * (len(fitting) < len(numbers))

    def with_rows(rows: int) -> View:
        return (*head, *fitting, *_differences(comparison, rows), *left, closing)

    # More rows never take fewer lines, and each look at the lines renders everything: as few looks as can be.
    counts = range(1, len(comparison.differences) + 1)
    return with_rows(bisect_right(counts, MOST_LINES, key=lambda rows: _lines(with_rows(rows))))


def _lines(view: View) -> int:
    return len(terminal.text(view).splitlines())


def _head(comparison: Comparison) -> tuple[Table | str, ...]:
    return (*map(_legend, comparison.runs), *_results(comparison), _sizes(comparison))


def _legend(run: ComparedRun) -> str:
    stopped = f"; stopped at {run.stopped}" if run.stopped else ""
    return f"{run.label} = {run.name} ({run.model}{stopped})"


def _results(comparison: Comparison) -> list[Table]:
    """A table for each evaluation and task; in the first, which runs cannot be compared."""
    results = [run.steps[run.result] for run in comparison.runs]
    tables: list[Table] = []
    for entry in entries(results):
        rows = []
        for run, step in zip(comparison.runs, results, strict=True):
            rows.append((run.label, *score_cells(score_of(step, entry), _change(run, entry))))
        notes = [f"{run.label} is not comparable with A: {reason}" for run in comparison.runs for reason in run.reasons]
        columns = (text_column("run"), *number_columns("score", "95 % interval", "change from A", "95 % interval"))
        tables.append(Table(entry_name(entry), columns, tuple(rows), () if tables else tuple(notes)))
    return tables


def _change(run: ComparedRun, entry: Entry) -> Change | None:
    name, task = entry
    own = run.evaluation_changes.get(name, {}).get(task) if name is not None else None
    return own or (run.changes.get(task) if name is None else None)


def _sizes(comparison: Comparison) -> Table:
    marks = {True: "best", False: "beaten", None: ""}
    rows, notes = [], []
    largest = max(run.steps[run.result].parameters.total for run in comparison.runs)
    for run in comparison.runs:
        step = run.steps[run.result]
        active = [short_number(step.parameters.active[t]) if t in step.parameters.active else "-" for t in TASKS]
        speeds = [speed_text(step, task) for task in TASKS]
        state = "not comparable" if run.reasons else marks[run.pareto]
        rows.append((run.label, parameters_cell(step.parameters.total, largest), *active, *speeds, state))
        notes += [f"{run.label}'s speeds are not comparable with A's: {reason}" for reason in run.speed_reasons]
    columns = (text_column("run"), *number_columns("params", "act. u", "act. g", "speed u", "speed g"),
               text_column("Pareto"))  # fmt: skip
    if comparison.objectives:
        notes.append(f"best: no other is at least as good in all of these, and better beyond noise in one: "
                     f"{', '.join(comparison.objectives)}")
    return Table("Size and speed", columns, tuple(rows), tuple(notes))


def _numbers(comparison: Comparison) -> list[Table]:
    """The published numbers of the evaluations: a row a number, a column a run."""
    shown = [row for row in comparison.numbers if row.number is not None]
    if not shown:
        return []
    places = list(range(1, len(comparison.runs)))
    groups = [places[start : start + _MOST_RUNS - 1] for start in range(0, len(places), _MOST_RUNS - 1)] or [[]]
    tables = []
    for group in groups:
        at = [0, *group]
        rows = tuple((f"{row.evaluation} {row.number}", *(_number(row, place) for place in at)) for row in shown)
        columns = (text_column("number"), *number_columns(*(comparison.runs[place].label for place in at)))
        tables.append(Table("Numbers", columns, rows, ("* beyond noise from A",)))
    return tables


def _number(row: ComparedNumber, place: int) -> str:
    """A blank in the place of a star keeps columns straight."""
    value, change = row.values[place], row.changes[place]
    mark = "" if place == 0 else "*" if change is not None and change.beyond_noise else " "
    return f"{'-' if value is None else number_text(value.value, is_share(value))}{mark}"


def _steps(run: ComparedRun) -> list[Table]:
    named = named_steps(run.steps)
    scored = entries(run.steps)
    scores = []
    for step, name in named:
        cells = []
        for entry in scored:
            value, _, change, _ = score_cells(score_of(step, entry), change_of(step, entry))
            cells += [value, change]
        scores.append((name, *cells))
    heads = [head for entry in scored for head in (entry_name(entry), "change")]
    sizes = []
    for step, name in named:
        active = [short_number(step.parameters.active[t]) if t in step.parameters.active else "-" for t in TASKS]
        total = (short_number(step.parameters.total), size_text(step.bytes.total))
        sizes.append((name, *total, *active, *(speed_text(step, task) for task in TASKS)))
    size_heads = ("params", "memory", "act. u", "act. g", "speed u", "speed g")
    return [
        Table(f"{run.label}: scores, with the change from its baseline", (text_column("step"), *number_columns(*heads)),
              tuple(scores)),
        Table(f"{run.label}: size and speed", (text_column("step"), *number_columns(*size_heads)), tuple(sizes)),
    ]  # fmt: skip


def _differences(comparison: Comparison, most: int | None) -> list[Table | str]:
    """The first rows of what the recipes say differently."""
    if not comparison.differences:
        return ["", "the recipes say the same"] if len(comparison.runs) > 1 else []
    shown = comparison.differences[:most]
    rows: list[tuple[str, ...]] = []
    step: str | None = None
    for row in shown:
        if row.step is not None and row.step != step and row.key:
            rows.append((row.step, *("" for _ in row.values)))
        rows.append((_key(row), *map(_value, row.values)))
        step = row.step
    left = len(comparison.differences) - len(shown)
    notes = (f"{left} more: --all",) if left else ()
    if not rows:
        return ["", f"what the recipes say differently: {left} rows, with --all"]
    columns = (text_column("key"), *(text_column(run.label) for run in comparison.runs))
    return [Table("What the recipes say differently", columns, tuple(rows), notes)]


def _key(row: Difference) -> str:
    return row.key if row.step is None else f"  {row.key}" if row.key else row.step


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

