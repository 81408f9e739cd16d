"""`umcompress sweep`: a recipe over a grid of values, each cell a run of its own; what they share is done once."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from umcompress import processes
from umcompress.documents.atomic import write_text_atomic
from umcompress.documents.file_names import SWEEP
from umcompress.documents.report import Report
from umcompress.documents.sweep import Cell, Sweep, SweptCell, values_text
from umcompress.errors import CheckError, PlanError, UsageError
from umcompress.plan.command import _load
from umcompress.plan.grid import cell_recipe, cells_of, grid_of
from umcompress.progress import duration, say
from umcompress.recipe.files import LoadedRecipe
from umcompress.run.folder import make_folder

if TYPE_CHECKING:
    from umcompress.models.source import Source
    from umcompress.run.sharing import Shared


def sweep(
    recipe: str, axes: Sequence[str], output: str | None = None, overrides: Sequence[str] = (),
    device: str | None = None, dtype: str | None = None,
) -> tuple[Sweep, Path]:
    """Run every cell of the grid into OUT/cells.  Goes on with an unfinished sweep; finished cells are kept.

    axes: as `--axis` gives them; none: those of the recipe's `sweep`.
    """
    given = {"device": device, "dtype": dtype}
    loaded = _load(recipe, overrides, given)
    grid = grid_of(loaded, axes)
    cells = cells_of(grid)
    recipes = [cell_recipe(recipe, cell, overrides, given, bool(axes)) for cell in cells]
    path = Path(output) if output else Path("runs") / f"{loaded.file.stem}-sweep"
    _claim(path)
    say(f"umcompress sweep {recipe}: {loaded.recipe.model}, {len(cells)} cells, into {path}")
    done = _run_cells(cells, recipes, path)
    baseline = next((report.baseline for report in done if isinstance(report, Report)), None)
    if baseline is None:
        raise CheckError(f"sweep {recipe}", f"no cell came to a result; the first: {done[0]}")
    result = Sweep(
        recipe=loaded.file.stem, model=loaded.recipe.model, axes={key: tuple(values) for key, values in grid.items()},
        baseline=baseline,
        cells=tuple(_swept(cell, report) for cell, report in zip(cells, done, strict=True)),
    )
    text = json.dumps(result.json_values(), indent=1, ensure_ascii=False) + "\n"
    processes.by_first(lambda: write_text_atomic(path / SWEEP, text))
    return result, path


def _claim(path: Path) -> None:
    make_folder(path, f"the output folder {path}")
    if any(path.iterdir()) and not (path / "cells").is_dir():
        asked = f"the output folder {path}"
        raise UsageError(asked, "it is not empty, and no sweep is in it", "choose another with -o")
    (path / "cells").mkdir(exist_ok=True)


def _run_cells(cells: Sequence[Cell], recipes: Sequence[LoadedRecipe], path: Path) -> list[Report | str]:
    """The report of each cell, or why it has none.  All are checked on shapes before the first one runs."""
    from umcompress.plan.check import check
    from umcompress.run.sharing import Shared

    device = processes.start(recipes[0].recipe.device)
    sources: dict[str, Source] = {}
    opened = [_source(loaded, device, sources) for loaded in recipes]
    for cell, loaded, source in zip(cells, recipes, opened, strict=True):
        try:
            check(loaded.recipe, source)
        except (PlanError, UsageError) as error:
            error.add_note(f"  in the cell {cell.name}")
            raise
    work = [_Work(*parts) for parts in zip(cells, recipes, opened, [path / "cells" / cell.name for cell in cells],
                                           strict=True)]  # fmt: skip
    shared, numbers = Shared(), range(1 + processes.rank(), len(work), processes.world())
    found: dict[int, Report | str] = {}
    # The first cell is one process's, for it has the baseline of all: the others wait, and take that over.
    if processes.rank() == 0:
        with processes.by_itself():
            found |= _take_turns(work, [0], shared)
    processes.from_first(None)
    if processes.rank() > 0:
        _take_over(work[0], shared)
    with processes.by_itself():
        found |= _take_turns(work, numbers, shared)
    every = {number: report for part in processes.gather(found) for number, report in part.items()}
    return [every[number] for number in range(len(work))]


@dataclass(frozen=True)
class _Work:
    """One cell to run: its recipe, the model, its folder."""

    cell: Cell
    loaded: LoadedRecipe
    source: Source
    folder: Path


def _take_turns(work: Sequence[_Work], numbers: Sequence[int], shared: Shared) -> dict[int, Report | str]:
    """Run these of the cells; says how long the others take once one is done."""
    found: dict[int, Report | str] = {}
    started = time.monotonic()
    for place, number in enumerate(numbers):
        left = (time.monotonic() - started) / place * (len(numbers) - place) if place else 0.0
        about = f"; about {duration(left)} left" if left >= 60 else ""
        one = work[number]
        say(f"cell {number + 1} of {len(work)}: {values_text(one.cell.values)}{about}")
        began = time.monotonic()
        found[number] = _run_cell(one, shared)
        rest = (time.monotonic() - began) * (len(work) - 1) / processes.launched()
        if number == 0 and rest >= 60:
            say(f"the other cells: about {duration(rest)}")
    return found


def _take_over(one: _Work, shared: Shared) -> None:
    """Know the steps of a cell that another process has run."""
    from umcompress.run.fingerprint import dependencies
    from umcompress.run.folder import RunFolder

    shared.take(RunFolder(one.folder, dependencies(one.loaded, one.source)))


def _source(loaded: LoadedRecipe, device: str | None, known: dict[str, Source]) -> Source:
    """One for all cells that load the same model in the same way.  What trains loads it for itself."""
    from umcompress.models.source import open_source
    from umcompress.run.sharing import SharedSource, trains

    recipe = loaded.recipe
    globs = recipe.component_globs()
    painted = recipe.sampling.given()
    key = json.dumps(
        [recipe.model, recipe.dtype, recipe.device, globs, recipe.trust_remote_code, painted, trains(recipe)]
    )
    if key not in known:
        source = open_source(recipe.model, recipe.dtype, device, globs, recipe.trust_remote_code, recipe.sampling)
        known[key] = source if trains(recipe) else SharedSource(**vars(source))
    return known[key]


def _run_cell(one: _Work, shared: Shared) -> Report | str:
    from umcompress.run.apply import carry_out

    try:
        return carry_out(one.loaded, one.source, one.folder, shared=shared)
    except (PlanError, CheckError) as error:
        say(f"this cell has no result: {error}")
        return str(error)


def _swept(cell: Cell, report: Report | str) -> SweptCell:
    if isinstance(report, str):
        return SweptCell(name=cell.name, values=cell.values, failed=report)
    stopped = f"{report.stopped.step}: {report.stopped.reason}" if report.stopped else None
    return SweptCell(name=cell.name, values=cell.values, result=report.result, stopped=stopped)
