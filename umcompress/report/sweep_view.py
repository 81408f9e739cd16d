"""A sweep as a table: a row a cell.  Formats what the document holds."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from umcompress.documents.base import TASKS
from umcompress.documents.sweep import Sweep, SweptCell, values_text
from umcompress.report.scores_view import change_in_one, is_share, score_in_one
from umcompress.report.table import Table, View, number_columns, short_number, text_column

NO_PICTURES = "no pictures: matplotlib is not there; pip install 'umcompress[plots]' and give the same command again"


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
    rows = [("unpruned", short_number(sweep.baseline.parameters.total), *scores)]
    rows += [(values_text(cell.values), *_cells(cell, len(tasks))) for cell in sweep.cells]
    notes = ["in brackets 95 % intervals; cells: change from the unpruned model, * beyond noise"]
    lower = [task for task in tasks if sweep.baseline.scores[task].lower_is_better]
    notes += [f"lower is better: {', '.join(lower)}"] if lower else []
    columns = (text_column("cell"), *number_columns("params", *tasks))
    return Table("Sweep", columns, tuple(rows), tuple(notes))


def _cells(cell: SweptCell, count: int) -> tuple[str, ...]:
    result = cell.result
    if result is None:
        return ("-",) * (count + 1)
    scored = [task for task in TASKS if task in result.scores]
    changes = [change_in_one(result.changes.get(task), is_share(result.scores[task])) for task in scored]
    return (short_number(result.parameters.total), *changes)
