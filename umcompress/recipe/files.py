"""Recipes by name: a file of the user's, or one that ships with the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from umcompress.documents.base import Document
from umcompress.errors import RecipeError, UsageError, did_you_mean
from umcompress.recipe.recipe import Recipe, parse_recipe

FileResolver = Callable[[str, Path], type[Document]]


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe with the file that it came from and that file's text, which the run keeps as it was given."""

    recipe: Recipe
    file: Path
    text: str
    overrides: tuple[str, ...] = ()

    def problem(self, path: tuple[str | int, ...], message: str, hint: str = "") -> RecipeError:
        """What was found wrong with the value at `path` after the recipe was read, with its line."""
        from umcompress.recipe.yaml_lines import YamlText

        source = YamlText(self.text, str(self.file))
        for option in self.overrides:
            source.override(option)
        source.problem(path, message, hint)
        return RecipeError(source.ordered())


def _shipped() -> Path:
    return Path(str(files("umcompress.recipes")))


def recipe_names() -> list[str]:
    """The recipes that ship with the package: `quickstart`, `study/NAME`."""
    root = _shipped()
    return sorted(file.relative_to(root).with_suffix("").as_posix() for file in root.rglob("*.yaml"))


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path that exists, else a shipped recipe of that name. Raises UsageError."""
    path = Path(name)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError:  # a name that no file can have
        is_file = is_folder = False
    if is_file:
        return path
    names = recipe_names()
    if name in names:
        return _shipped() / f"{name}.yaml"
    found = "a folder of that name" if is_folder else "no such file, and no shipped recipe of that name"
    raise UsageError(f"the recipe {name!r}", found, did_you_mean(name, names))


def load_recipe(
    name: str,
    passes: FileResolver,
    evaluations: FileResolver,
    overrides: Sequence[str] = (),
    settings: Mapping[str, object] | None = None,
    models: Callable[[str], object] | None = None,
    layouts: Callable[[str], Sequence[str]] | None = None,
) -> LoadedRecipe:
    """Find, read and parse a recipe; its paths are seen from its folder. See `parse_recipe`.

    Those of a shipped recipe are seen from the current folder: nobody keeps files among them.
    """
    file = find_recipe(name)
    folder = file.parent if Path(name).is_file() else None
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the recipe {name!r}", f"it cannot be read: {error}") from error
    recipe = parse_recipe(
        text,
        str(file),
        passes=lambda reference: passes(reference, folder or Path()),
        evaluations=lambda reference: evaluations(reference, folder or Path()),
        overrides=overrides,
        models=models,
        settings=settings,
        layouts=layouts,
        folder=folder,
    )
    return LoadedRecipe(recipe, file, text, tuple(overrides))
