"""`model_index.json` of a pipeline: its class, and library and class of each part. No diffusers needed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umcompress.documents.files import read_json
from umcompress.errors import ModelError
from umcompress.models.parts_of_folder import BASE_INDEX, INDEX

# Named as the library of a part that only `umcompress.load` can build; diffusers refuses such a folder.
OURS = "umcompress"
_WEIGHTED = ("diffusers", "transformers")


@dataclass(frozen=True)
class Part:
    """One part of a pipeline: the name of its folder, and the library and class that it is of."""

    name: str
    library: str
    kind: str


@dataclass(frozen=True)
class PipelineIndex:
    """kind: the class of the pipeline. parts: those that may have weights. content: the whole file."""

    kind: str
    parts: tuple[Part, ...]
    content: Mapping[str, Any]


def read_index(folder: Path) -> PipelineIndex:
    """The index of a pipeline's folder; of a compressed one, that of the pipeline it was made from.  ModelError."""
    base = folder / BASE_INDEX
    file = base if base.is_file() else folder / INDEX
    asked = f"read {file}"
    try:
        content = read_json(file)
        kind = content["_class_name"]
        listed = {name: value for name, value in content.items() if _is_part(value)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(asked, f"it is no index of a pipeline: {error}", "get the folder again") from None
    if not isinstance(kind, str):
        raise ModelError(asked, f"_class_name is {kind!r}", "give it the name of a class of diffusers, a string")
    parts = []
    for name, (library, cls) in sorted(listed.items()):
        weighted = (folder / name / "config.json").is_file()
        if weighted and library not in _WEIGHTED:
            raise ModelError(
                f"build the part {name} of {folder}", f"its class {cls} comes from {library}, code of its own",
                f"use a pipeline whose parts with weights are classes of {' or '.join(_WEIGHTED)}",
            )
        if weighted:
            parts.append(Part(name, library, cls))
    if not parts:
        raise ModelError(asked, "no part of it has a folder with a config.json", "get the folder again")
    return PipelineIndex(kind, tuple(parts), content)


def _is_part(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(one, str) for one in value)


def require_diffusers(folder: Path) -> None:
    """ModelError with what to install, where diffusers is not."""
    if importlib.util.find_spec("diffusers") is None:
        raise ModelError(
            f"open the pipeline in {folder}", "it is a pipeline of diffusers, which is not installed",
            "pip install 'umcompress[diffusers]'",
        )
