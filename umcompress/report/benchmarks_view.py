"""Tables for each evaluation of a report: its published numbers, parts, remarks, and time."""

from __future__ import annotations

from collections.abc import Sequence

from umcompress.documents.base import Task
from umcompress.documents.report import StepReport
from umcompress.documents.scores import KindScore, Score
from umcompress.report.table import Table, number_columns, seconds, text_column

# With margins, in 80 columns, and room for the names of numbers.
_MOST_COLUMNS = 4


def benchmarks_tables(steps: Sequence[StepReport], timed: bool = True) -> list[Table]:
    """The tables; none for one evaluation without numbers of its own, which the scores table covers."""
    entries = _entries(steps)
    several = any(sum(task == other for _, other in entries) > 1 for _, task in entries)
    if not several and not any(_of(step, *entry).numbers for step in steps for entry in entries if _has(step, *entry)):
        return []
    return [_values(steps, entries, timed), *_parts(steps[-1], entries)]


def _entries(steps: Sequence[StepReport]) -> list[tuple[str, Task]]:
    found = ((name, task) for step in steps for name, part in step.evaluations.items() for task in part)
    return list(dict.fromkeys(found))


def _has(step: StepReport, name: str, task: Task) -> bool:
    return task in step.evaluations.get(name, {})


def _of(step: StepReport, name: str, task: Task) -> Score:
    return step.evaluations[name][task]


def _values(steps: Sequence[StepReport], entries: Sequence[tuple[str, Task]], timed: bool) -> Table:
    """A row for each number, a column for each step; the last: how many items, and whether that is all of them."""
    shown = list(steps) if len(steps) <= _MOST_COLUMNS else [steps[0], *steps[1 - _MOST_COLUMNS :]]
    rows = []
    for name, task in entries:
        scores = [_of(step, name, task) if _has(step, name, task) else None for step in shown]
        first = next(score for score in scores if score is not None)
        items = first.partial or str(first.n)
        rows.append((f"{name} {task}", *(value_text(score) for score in scores), items))
        for number in first.numbers:
            cells = [value_text(score.numbers.get(number) if score else None) for score in scores]
            rows.append((f"  {number}", *cells, ""))
    heads = [step.name if step.pass_ is None else step.name.partition("-")[0][:8] for step in shown]
    notes = ["± half of the 95 % interval; items: how many were scored, of how many if not of all"]
    if len(shown) < len(steps):
        notes.append(left_out(len(steps) - len(shown)))
    took = [
        f"{name} {task} took {seconds(score.seconds)}"
        for name, task in entries
        if timed and _has(steps[-1], name, task) and (score := _of(steps[-1], name, task)).seconds is not None
    ]
    return Table("Evaluations", (text_column("number"), *number_columns(*heads, "items")), tuple(rows), (*notes, *took))


def _parts(step: StepReport, entries: Sequence[tuple[str, Task]]) -> list[Table]:
    """The kinds of every evaluation that is not a task's first: that one has a table of its own."""
    tables = []
    for name, task in entries:
        if not _has(step, name, task) or _of(step, name, task) == step.scores.get(task):
            continue
        kinds = _of(step, name, task).by_kind
        rows = tuple((kind, value_text(part), str(part.n)) for kind, part in kinds.items())
        if rows:
            columns = (text_column("kind"), *number_columns("score", "items"))
            tables.append(Table(f"{name}, {task} by kind", columns, rows))
    return tables


def left_out(steps: int) -> str:
    """A note on columns that a table has no room for."""
    return f"{steps} step{'s' if steps > 1 else ''} left out; report.json has all"


def value_text(score: KindScore | None) -> str:
    """`0.853 ±0.012`; on scales above ten a decimal less or two."""
    if score is None:
        return "-"
    digits = 3 if max(abs(score.value), abs(score.high)) < 10 else 1
    return f"{score.value:.{digits}f} ±{(score.high - score.low) / 2:.{digits}f}"


def partial_notes(step: StepReport) -> list[str]:
    """A line for each score that covers only a part of its benchmark, or deviates from its protocol."""
    scores = [(name, score) for name, part in step.evaluations.items() for score in part.values()]
    partial = [
        f"~ a part of {name} only: {score.partial}; no score of the whole" for name, score in scores if score.partial
    ]
    return partial + [f"{name} is a variant: {score.variant}" for name, score in scores if score.variant]
