"""The grid of a sweep: its axes, its cells, the recipe of each."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from umcompress.documents.sweep import Cell, values_text
from umcompress.errors import RecipeError, UsageError
from umcompress.plan.command import _load
from umcompress.recipe.files import LoadedRecipe
from umcompress.recipe.yaml_lines import Override, YamlText

Axes = Mapping[str, Sequence[Any]]
_MOST = 1000
_EXAMPLE = "write it as --axis steps.1.keep_ratio=0.75,0.5,0.25"


def grid_of(loaded: LoadedRecipe, axes: Sequence[str]) -> dict[str, Sequence[Any]]:
    """The axes as `--axis` gives them, else the recipe's own.  UsageError where there are none."""
    grid: dict[str, Sequence[Any]] = dict(axes_of(axes)) if axes else dict(loaded.recipe.sweep or {})
    if not grid:
        raise UsageError(f"sweep {loaded.file}", "no axis", f"{_EXAMPLE}, or give the recipe a `sweep:` block")
    return grid


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


def cell_recipe(
    recipe: str, cell: Cell, overrides: Sequence[str], given: Mapping[str, Any], typed: bool
) -> LoadedRecipe:
    """The recipe with a cell's values.  RecipeError, which names the cell.

    typed: the axes are the command line's, not those of the recipe's `sweep`: paths are seen from the current folder.
    """
    texts = [f"{path}={json.dumps(value, ensure_ascii=False)}" for path, value in cell.values.items()]
    changes = [Override(text, f"{'--axis' if typed else 'sweep:'} {text}", own=not typed) for text in texts]
    try:
        # The grid is no part of what a cell computes: it may grow.
        loaded = _load(recipe, [*overrides, *changes, "sweep=null"], given)
    except RecipeError as error:
        error.add_note(f"  in the cell {cell.name}")
        raise
    return loaded
