"""`umcompress sweep`: a recipe over a grid of values, each cell a run of its own; what they share is done once."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umcompress import processes
from umcompress.documents.atomic import write_text_atomic
from umcompress.documents.file_names import SWEEP
from umcompress.documents.report import Report
from umcompress.documents.sweep import Cell, Sweep, SweptCell, values_text
from umcompress.errors import CheckError, PlanError, RecipeError, UsageError
from umcompress.plan.command import _load
from umcompress.progress import say
from umcompress.recipe.files import LoadedRecipe
from umcompress.recipe.yaml_lines import YamlText
from umcompress.run.folder import make_folder

if TYPE_CHECKING:
    from umcompress.models.source import Source
    from umcompress.run.sharing import Shared

Axes = Mapping[str, Sequence[Any]]
_MOST = 1000
_EXAMPLE = "write it as --axis steps.1.keep_ratio=0.75,0.5,0.25"


def sweep(
    recipe: str, axes: Sequence[str], output: str | None = None, overrides: Sequence[str] = (),
    device: str | None = None, dtype: str | None = None,
) -> tuple[Sweep, Path]:
    """Run every cell of the grid into OUT/cells.  Goes on with an unfinished sweep; finished cells are kept.

    axes: as `--axis` gives them; none: those of the recipe's `sweep`.
    """
    given = {"device": device, "dtype": dtype}
    loaded = _load(recipe, overrides, given)
    grid = axes_of(axes) if axes else dict(loaded.recipe.sweep or {})
    if not grid:
        raise UsageError(f"sweep {recipe}", "no axis", f"{_EXAMPLE}, or give the recipe a `sweep:` block")
    cells = cells_of(grid)
    recipes = [_cell_recipe(recipe, cell, overrides, given) for cell in cells]
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


def axes_of(texts: Sequence[str]) -> dict[str, list[Any]]:
    """`PATH=V1,V2` with values in YAML, as a mapping from path to values.  UsageError."""
    found: dict[str, list[Any]] = {}
    for text in texts:
        path, equals, values = text.partition("=")
        asked = f"--axis {text}"
        if not equals or not path.strip() or not values.strip():
            raise UsageError(asked, "it is not PATH=V1,V2,...", _EXAMPLE)
        if path.strip() in found:
            raise UsageError(asked, f"{path.strip()} is an axis already", "give all its values at once")
        try:
            read = YamlText(f"[{values}]", asked)
        except RecipeError as error:
            raise UsageError(asked, f"{values!r} is not a list of YAML values", _EXAMPLE) from error
        if read.problems:
            raise UsageError(asked, read.problems[0].message, _EXAMPLE)
        found[path.strip()] = read.data
    return found


def cells_of(axes: Axes) -> list[Cell]:
    """All combinations; of the last axis the values change first.  UsageError where two are the same."""
    count = 1
    for values in axes.values():
        count *= len(values)
    if count > _MOST:
        raise UsageError("sweep", f"{count} cells, at most {_MOST} are run", "give the axes fewer values")
    cells: dict[str, Cell] = {}
    for combination in itertools.product(*axes.values()):
        chosen: dict[str, Any] = dict(zip(axes, combination, strict=True))
        name = re.sub(r"[^A-Za-z0-9.=_-]+", "-", values_text(chosen).replace(", ", "_").replace(" ", "-")).strip("-.")
        if name in cells:
            raise UsageError("sweep", f"two cells would be called {name}", "leave the value out that is there twice")
        cells[name] = Cell(name=name, values=chosen)
    return list(cells.values())


def _cell_recipe(recipe: str, cell: Cell, overrides: Sequence[str], given: Mapping[str, Any]) -> LoadedRecipe:
    changes = [f"{path}={json.dumps(value, ensure_ascii=False)}" for path, value in cell.values.items()]
    try:
        # The grid is no part of what a cell computes: it may grow.
        loaded = _load(recipe, [*overrides, *changes, "sweep=null"], given)
    except RecipeError as error:
        error.add_note(f"  in the cell {cell.name}")
        raise
    return loaded


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
    shared, found, started = Shared(), list[Report | str](), time.monotonic()
    for number, (cell, loaded, source) in enumerate(zip(cells, recipes, opened, strict=True)):
        left = (time.monotonic() - started) / number * (len(cells) - number) if number else 0.0
        about = f"; about {left / 60:.0f} min left" if left >= 60 else ""
        say(f"cell {number + 1} of {len(cells)}: {values_text(cell.values)}{about}")
        found.append(_run_cell(loaded, source, path / "cells" / cell.name, shared))
    return found


def _source(loaded: LoadedRecipe, device: str | None, known: dict[str, Source]) -> Source:
    """One for all cells that load the same model in the same way.  What trains loads it for itself."""
    from umcompress.models.source import open_source
    from umcompress.run.sharing import SharedSource, trains

    recipe = loaded.recipe
    globs = recipe.component_globs()
    key = json.dumps([recipe.model, recipe.dtype, recipe.device, globs, recipe.trust_remote_code, trains(recipe)])
    if key not in known:
        source = open_source(recipe.model, recipe.dtype, device, globs, recipe.trust_remote_code)
        known[key] = source if trains(recipe) else SharedSource(**vars(source))
    return known[key]


def _run_cell(loaded: LoadedRecipe, source: Source, folder: Path, shared: Shared) -> Report | str:
    from umcompress.run.apply import carry_out

    try:
        return carry_out(loaded, source, folder, shared=shared)
    except (PlanError, CheckError) as error:
        say(f"this cell has no result: {error}")
        return str(error)


def _swept(cell: Cell, report: Report | str) -> SweptCell:
    if isinstance(report, str):
        return SweptCell(name=cell.name, values=cell.values, failed=report)
    stopped = f"{report.stopped.step}: {report.stopped.reason}" if report.stopped else None
    return SweptCell(name=cell.name, values=cell.values, result=report.result, stopped=stopped)
