"""Paths in a recipe are seen from the recipe's folder; those of options on the command line from the current one.

A recipe that was read names everything as seen from the current folder, so that it can be opened as it stands.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from umcompress.documents.file_names import RECIPE, RUN
from umcompress.documents.model_names import BUILT_IN, is_hub_id
from umcompress.documents.places import At, Kind, placed

Change = Callable[[str, Kind, At], str]


def with_places(document: type[BaseModel], values: Mapping[str, Any], change: Change) -> dict[str, Any]:
    """The values of a document with everything that names something on the disk changed."""
    found: dict[str, Any] = copy.deepcopy(dict(values))
    for at, kind in placed(document, values).items():
        holder: Any = found
        for part in at[:-1]:
            holder = holder[part]
        holder[at[-1]] = change(holder[at[-1]], kind, at)
    return found


def is_named(name: str, kind: Kind, seen_from: Path | None = None) -> bool:
    """Whether it is a name that holds everywhere: a built-in model, a hub id, a pass or an evaluation by its name."""
    if kind == "code":
        return ".py:" not in name and not name.endswith(".py")
    return kind == "model" and (name in BUILT_IN or (not _there(_at(seen_from, name)) and is_hub_id(name, seen_from)))


def seen_from_here(name: str, kind: Kind, folder: Path | None) -> str:
    """A name of a recipe in `folder` (None: the current one), as it is seen from the current folder."""
    if folder is None or Path(name).is_absolute() or is_named(name, kind, folder) or _same(folder, Path()):
        return name
    return str(_short(folder / name))


def seen_from(name: str, kind: Kind, folder: Path) -> str:
    """A name that is seen from the current folder, as a file in `folder` says it."""
    if Path(name).is_absolute() or is_named(name, kind) or _same(folder, Path()):
        return name
    whole = _short(Path.cwd() / name)
    return os.path.relpath(whole.resolve() if ".." in whole.parts else whole, folder.resolve())


def only_here(name: str, kind: Kind, folder: Path | None, text: str) -> tuple[str, str] | None:
    """Where a name is there seen from the current folder alone: what is wrong with it, and what to write.

    text: of the recipe.  A folder for results says nothing by being there, unless it holds a run of this recipe.
    """
    if folder is None or Path(name).is_absolute() or name in BUILT_IN or is_named(name, kind) or _same(folder, Path()):
        return None
    file = name.rpartition(".py:")[0] + ".py" if ".py:" in name else name
    there, here = folder / file, Path(file)
    if _there(there) or not _there(here) or (kind == "output" and not _is_run_of(here, text)):
        return None
    found = f"there is no {there}: paths in a recipe are seen from its folder; {here} is in the current folder"
    return found, seen_from(name, "path", folder)


def _is_run_of(folder: Path, text: str) -> bool:
    try:
        return (folder / RUN).is_file() and (folder / RECIPE).read_text(encoding="utf-8") == text
    except (OSError, UnicodeDecodeError):
        return False


def _at(folder: Path | None, name: str) -> Path:
    return (folder or Path()) / name


def _there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _short(path: Path) -> Path:
    """The path without `..`, but behind a link: there `..` is another folder than the path says."""
    short = Path(os.path.normpath(path))
    return short if _same(short, path) else path


def _same(one: Path, other: Path) -> bool:
    # Not Path.resolve, which raises for names that no file can have.
    return os.path.realpath(one) == os.path.realpath(other)
