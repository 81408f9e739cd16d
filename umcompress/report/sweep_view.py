"""A sweep as a table: a row a cell.  Formats what the document holds."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from umcompress.documents.base import TASKS, Task
from umcompress.documents.previews import SweepPlan
from umcompress.documents.sweep import Sweep, SweptCell, values_text
from umcompress.progress import duration
from umcompress.report.pictures import NO_PICTURES
from umcompress.report.scores_view import change_in_one, score_in_one
from umcompress.report.table import Table, View, number_columns, parameters_cell, short_number, text_column


def sweep_view(sweep: Sweep, folder: str, written: Sequence[str]) -> View:
    """written: the pictures' files, in the folder; none where nothing could draw them."""
    lines = [f"{sweep.recipe} on {sweep.model}: {len(sweep.cells)} cells"]
    lines += [f"{values_text(cell.values)}: no result: {cell.failed}" for cell in sweep.cells if cell.failed]
    lines += [f"{values_text(cell.values)}: stopped at {cell.stopped}" for cell in sweep.cells if cell.stopped]
    ends = [f"written: {folder}/{name}" for name in written] or [NO_PICTURES]
    done = [shlex.quote(f"{folder}/cells/{cell.name}") for cell in sweep.cells if cell.result is not None]
    ends.append(f"next: umcompress compare {' '.join(done[:3])}")
    return (lines[0], sweep_table(sweep), "", *lines[1:], *ends)


def sweep_table(sweep: Sweep) -> Table:
    """The unpruned model first; sizes of all parameters, changes from the unpruned model."""
    tasks = [task for task in TASKS if task in sweep.baseline.scores]
    scores = [score_in_one(sweep.baseline.scores[task]) for task in tasks]
    whole = sweep.baseline.parameters.total
    rows = [("unpruned", parameters_cell(whole, whole), *scores)]
    rows += [(values_text(cell.values), *_cells(cell, len(tasks), whole)) for cell in sweep.cells]
    notes = ["in brackets 95 % intervals; cells: change from the unpruned model, * beyond noise"]
    lower = [task for task in tasks if sweep.baseline.scores[task].lower_is_better]
    notes += [f"lower is better: {', '.join(lower)}"] if lower else []
    columns = (text_column("cell"), *number_columns("params", *tasks))
    return Table("Sweep", columns, tuple(rows), tuple(notes))


def _cells(cell: SweptCell, count: int, whole: int) -> tuple[str, ...]:
    result = cell.result
    if result is None:
        return ("-",) * (count + 1)
    scored = [task for task in TASKS if task in result.scores]
    changes = [change_in_one(result.changes.get(task), result.scores[task]) for task in scored]
    return (parameters_cell(result.parameters.total, whole), *changes)


def sweep_plan_view(plan: SweepPlan, recipe: str, settings: Sequence[str] = ()) -> View:
    """recipe, settings: as the command line has them, for the closing line."""
    wrong = [cell for cell in plan.cells if cell.problem]
    done = sum(cell.done for cell in plan.cells)
    title = f"{plan.recipe_name} on {plan.model}: {len(plan.cells)} cells, {len(plan.cells) - len(wrong)} can be run"
    rows = [("unpruned", short_number(plan.before.total), "", *_work({}), "")]
    for cell in plan.cells:
        size = short_number(cell.parameters.total) if cell.parameters else "-"
        share = f"{cell.parameters.total / plan.before.total:.3f}" if cell.parameters and plan.before.total else "-"
        state = "CANNOT" if cell.problem else "done" if cell.done else ""
        rows.append((values_text(cell.values), size, share, *_work(cell.macs_per_token), state))
    columns = (text_column("cell"), *number_columns("params", "share", "MACs u", "MACs g", ""))
    lines = [f"{values_text(cell.values)} CANNOT be run: {cell.problem}" for cell in wrong]
    time = "known once the first cell is done: umcompress sweep says it then, and this command"
    if plan.seconds is not None:
        left = len(plan.cells) - len(wrong) - done
        time = f"about {duration(plan.seconds)} for the {left} cells that are left" if left else "all is done"
    lines.append(f"time: {time}")
    if not wrong:
        lines.append(f"next: umcompress sweep {shlex.join([recipe, *settings])}")
    return (title, Table("Cells, on shapes alone", columns, tuple(rows)), "", *lines)


def _work(macs: Mapping[Task, int]) -> tuple[str, ...]:
    return tuple(short_number(macs[task]) if task in macs else "" for task in TASKS)
