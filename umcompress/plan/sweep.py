"""What a sweep would do: its cells on shapes alone, and how long they take once one is finished."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from umcompress.documents.file_names import REPORT, RUN
from umcompress.documents.previews import PlannedCell, SweepPlan
from umcompress.documents.report import Size
from umcompress.documents.sweep import Cell
from umcompress.errors import RecipeError
from umcompress.plan.command import _load
from umcompress.plan.grid import cell_recipe, cells_of, grid_of
from umcompress.progress import say


def plan_sweep(
    recipe: str, axes: Sequence[str], overrides: Sequence[str] = (), device: str | None = None,
    dtype: str | None = None, output: str | None = None,
) -> SweepPlan:  # fmt: skip
    """Plan every cell.  output: the folder of a sweep that was begun, whose finished cells tell the time."""
    from umcompress.plan.dry_run import plan_recipe

    given = {"device": device, "dtype": dtype}
    loaded = _load(recipe, overrides, given)
    grid = grid_of(loaded, axes)
    folder = (Path(output) if output else Path("runs") / f"{loaded.file.stem}-sweep") / "cells"
    planned: list[PlannedCell] = []
    before: Size | None = None
    for number, cell in enumerate(cells := cells_of(grid), start=1):
        say(f"planning cell {number} of {len(cells)}: {cell.name}")
        try:
            own = cell_recipe(recipe, cell, overrides, given, bool(axes))
        except RecipeError as error:
            planned.append(_cell(cell, folder, problem=" ".join(str(error).split())))
            continue
        found = plan_recipe(own.recipe, own.file.stem)
        before = before or found.steps[0].before
        problems = [step.problem for step in found.steps if step.problem] + list(found.problems)
        last = found.steps[-1]
        planned.append(_cell(
            cell, folder, parameters=last.after, bytes=last.bytes_after, macs_per_token=last.macs_after,
            problem=" ".join(problems[0].split()) if problems else None,
        ))  # fmt: skip
    return SweepPlan(
        model=loaded.recipe.model, recipe_name=loaded.file.stem, axes={key: tuple(row) for key, row in grid.items()},
        before=before or Size(total=0), cells=tuple(planned), seconds=_seconds(folder, planned),
    )  # fmt: skip


def _cell(cell: Cell, folder: Path, **found: object) -> PlannedCell:
    done = (folder / cell.name / REPORT).is_file()
    return PlannedCell.model_validate({"name": cell.name, "values": cell.values, "done": done, **found})


def _seconds(folder: Path, cells: Sequence[PlannedCell]) -> float | None:
    """From when a finished cell was begun to when its report was written, the median; for each that is left."""
    times = [
        (folder / cell.name / REPORT).stat().st_mtime - (folder / cell.name / RUN).stat().st_mtime
        for cell in cells if cell.done and (folder / cell.name / RUN).is_file()
    ]  # fmt: skip
    left = sum(not cell.done and cell.problem is None for cell in cells)
    return statistics.median(times) * left if times else None
