"""A sweep: the grid of its cells, and what each came to."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field

from umcompress.documents.base import Document
from umcompress.documents.report import StepReport


class Cell(Document):
    """One combination of the axes' values, by path; `name` is its folder below `cells`."""

    name: str
    values: dict[str, Any]


class SweptCell(Cell):
    """A cell with its result: the last step that was not undone.

    stopped: why its run ended before its last step. failed: why there is no result.
    """

    result: StepReport | None = None
    stopped: str | None = None
    failed: str | None = None


class Sweep(Document):
    """What `umcompress sweep` writes and prints.  Every cell was held against the same `baseline`."""

    format: Literal[1] = 1
    recipe: str
    model: str
    axes: dict[str, tuple[Any, ...]]
    baseline: StepReport
    cells: tuple[SweptCell, ...] = Field(min_length=1)

    def series(self) -> tuple[str | None, dict[str, list[SweptCell]]]:
        """The one axis of numbers, if there is one, and the finished cells by the values of all other axes.

        Without such an axis a series goes along the last one.
        """
        numeric = [path for path, values in self.axes.items() if all(_is_number(value) for value in values)]
        along = numeric[0] if len(numeric) == 1 else None
        over = along or list(self.axes)[-1]
        found: dict[str, list[SweptCell]] = {}
        for cell in self.cells:
            if cell.result is not None:
                others = {path: value for path, value in cell.values.items() if path != over}
                found.setdefault(values_text(others) or "sweep", []).append(cell)
        return along, found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def short(value: Any) -> str:
    """A value as cells and tables name it; a whole step by its name, else by its pass and what else it says."""
    if isinstance(value, dict) and "name" in value:
        return str(value["name"])
    if isinstance(value, dict):
        return " ".join(f"{short(part)}" if key == "pass" else f"{key} {short(part)}"
                        for key, part in value.items())  # fmt: skip
    if isinstance(value, list | tuple):
        return " ".join(short(part) for part in value)
    return value if isinstance(value, str) else json.dumps(value)


def values_text(values: dict[str, Any]) -> str:
    """`component generation, keep_ratio 0.5`; paths whole where their ends are alike."""
    ends = [path.rpartition(".")[2] for path in values]
    labels = [path if ends.count(end) > 1 or end.isdecimal() else end for path, end in zip(values, ends, strict=True)]
    # A whole step says itself what it is.
    parts = [
        short(value) if isinstance(value, dict) else f"{label} {short(value)}"
        for label, value in zip(labels, values.values(), strict=True)
    ]
    return ", ".join(parts)
