"""What a run is made of: a killed run goes on only with the same, and never mixes old results with new code."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from umcompress.recipe.files import LoadedRecipe


def fingerprint(loaded: LoadedRecipe, weights: str) -> str:
    """Recipe, weights, version, and the user's own code and data; a change of any makes another run.

    Of the user's are passes, evaluations and sources that are named by path, and files that calibrate, train or score.
    """
    recipe = loaded.recipe
    givers: list[Any] = [recipe.calibration, *(recipe.calibration_of(step.pass_) for step in recipe.steps)]
    givers += [step.pass_ for step in recipe.steps]
    sources = [_text(giver, "source") for giver in givers]
    named = [*(step.reference for step in recipe.steps), *recipe.evaluation_names, *filter(None, sources)]
    code = [loaded.file.parent / name.rpartition(":")[0] for name in dict.fromkeys(named) if ".py:" in name]
    data = [Path(name) for giver in givers if (name := _text(giver, "data")) is not None]
    data += [file for evaluation in recipe.evaluate for file in _scored(evaluation)]
    digests = [_digest(file) for file in [*code, *dict.fromkeys(data)]]
    parts = [recipe.fingerprint(), weights, version("umcompress"), *digests]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _text(giver: Any, key: str) -> str | None:
    found = getattr(giver, key, None)
    return found if isinstance(found, str) else None


def _scored(evaluation: Any) -> list[Path]:
    """The file that it scores, or those that it names in its folder; of folders of pictures only the lists."""
    place = getattr(evaluation, "folder", None) or getattr(evaluation, "data", None)
    if place is None:
        return []
    needed = getattr(evaluation, "needed", None)
    inside = [Path(place) / name for name in needed.files] if needed is not None else []
    return [file for file in (Path(place), *inside) if file.is_file()]


def _digest(file: Path) -> str:
    """Of the content. A file that is not there is reported by what wants to read it."""
    if not file.is_file():
        return ""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
