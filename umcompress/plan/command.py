"""`umcompress plan` and `umcompress inspect`, as functions that return documents."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from umcompress.documents.previews import Inspection, PlanReport
from umcompress.extend.registry import find_evaluation, find_pass
from umcompress.models.registry import resolve_folder
from umcompress.recipe.files import LoadedRecipe, load_recipe


@contextmanager
def uncollected() -> Iterator[None]:
    """Without looking for garbage: imports and skeletons make millions of small objects that all stay."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _load(recipe: str, overrides: Sequence[str], settings: Mapping[str, object | None]) -> LoadedRecipe:
    given = {key: value for key, value in settings.items() if value is not None}
    return load_recipe(
        recipe, find_pass, find_evaluation, overrides, given, models=resolve_folder, layouts=_layouts
    )


def _layouts(model: str) -> Sequence[str]:
    """What a model can be written as for other programs."""
    from umcompress.models.registry import find_family

    return find_family(resolve_folder(model)).layouts


def plan(
    recipe: str, overrides: Sequence[str] = (), device: str | None = None, dtype: str | None = None
) -> PlanReport:
    """What a recipe would do, from shapes alone."""
    with uncollected():
        loaded = _load(recipe, overrides, {"device": device, "dtype": dtype})
        from umcompress.plan.dry_run import plan_recipe

        return plan_recipe(loaded.recipe, loaded.file.stem)


def has_grid(recipe: str, overrides: Sequence[str] = ()) -> bool:
    """Whether the recipe is one of a sweep."""
    return bool(_load(recipe, overrides, {}).recipe.sweep)


def inspect(model: str, graph_path: str | None = None, trust_remote_code: bool = False) -> Inspection:
    """Components, blocks, sites and sizes; no weights are read."""
    from umcompress.plan.inspect import inspect_model

    return inspect_model(model, graph_path, trust_remote_code)
