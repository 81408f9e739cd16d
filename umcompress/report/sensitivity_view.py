"""The sensitivity of a model as tables: a row a layer, a column a change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from umcompress.documents.alone import PARTS, PartScore, Sensitivity
from umcompress.documents.base import Task
from umcompress.report.pictures import NO_PICTURES
from umcompress.report.scores_view import score_in_one, tone_of
from umcompress.report.table import Cell, Table, View, number_columns, text_column

SHORT = {"attention": "att.", "feed_forward": "feed-f.", "block": "block"}
CHANGES: tuple[Literal["halved", "dropped"], ...] = ("halved", "dropped")


def sensitivity_view(found: Sensitivity, folder: str, written: Sequence[str]) -> View:
    """written: the pictures' files, in the folder."""
    levels = ", ".join(f"{task} {score_in_one(score)}" for task, score in found.baseline.items())
    title = f"{found.model}: loss as it is: {levels}"
    refused = dict.fromkeys(part.refused for part in found.parts if part.refused)
    ends = [f"left out: {reason}" for reason in list(refused)[:3]]
    ends += [f"and {len(refused) - 3} more reasons; sensitivity.json has them"] * (len(refused) > 3)
    ends += [f"written: {folder}/{name}" for name in written] or [NO_PICTURES]
    return (title, *loss_tables(found), *similarity_tables(found), "", *ends)


def loss_tables(found: Sensitivity) -> list[Table]:
    """For each task and component how the loss changes."""
    return [_losses(found, task, *own) for task in found.baseline for own in owners(found)]


def owners(found: Sensitivity) -> list[tuple[str, str]]:
    """The components with the stacks in which they have parts."""
    return list(dict.fromkeys((part.component, part.stack) for part in found.parts))


def owner_words(found: Sensitivity, component: str, stack: str) -> str:
    """`generation parts`, with the stack where there are several."""
    several = len({part.stack for part in found.parts}) > 1
    return f"{component} parts of {stack}" if several else f"{component} parts"


def _losses(found: Sensitivity, task: Task, component: str, stack: str) -> Table:
    own = {
        (part.layer, part.part, part.change): part for part in found.parts
        if (part.component, part.stack) == (component, stack)
    }  # fmt: skip
    layers = sorted({layer for layer, _, _ in own})
    columns = [(part, change) for part in PARTS for change in CHANGES]
    rows = [(str(layer), *(_change(own.get((layer, *column)), task) for column in columns)) for layer in layers]
    heads = number_columns(*(f"{SHORT[part]} {'half' if change == 'halved' else 'gone'}" for part, change in columns))
    notes = ("change of the loss when one part of one layer is halved or gone, * beyond noise (95 %, paired)",)
    title = f"{task.capitalize()} loss, {owner_words(found, component, stack)}"
    return Table(title, (text_column("layer"), *heads), tuple(rows), notes)


def _change(part: PartScore | None, task: Task) -> str:
    if part is None or task not in part.changes:
        return "- "
    change = part.changes[task]
    text = f"{f'{change.value:+.2g}' if change.value else '0'}{'*' if change.beyond_noise else ' '}"
    return Cell(text, tone_of(change, lower_is_better=True))


def similarity_tables(found: Sensitivity) -> list[Table]:
    """A table a task, a column a part of a component."""
    tables = []
    for task in dict.fromkeys(one.task for one in found.similarities):
        own = [one for one in found.similarities if one.task == task]
        columns = list(dict.fromkeys((one.component, one.stack, one.part) for one in own))
        columns.sort(key=lambda column: (column[0] != "understanding", column[1], PARTS.index(column[2])))
        values = {(one.component, one.stack, one.part, one.layer): f"{one.cosine:.3f}" for one in own}
        layers = sorted({one.layer for one in own})
        rows = [(str(layer), *(values.get((*column, layer), "-") for column in columns)) for layer in layers]
        heads = number_columns(*(f"{component[:3]}. {SHORT[part]}" for component, _, part in columns))
        notes = ("cosine between the stream before a part and after it; near 1: the part changes little",)
        tables.append(Table(f"Similarity during {task}", (text_column("layer"), *heads), tuple(rows), notes))
    return tables
