"""Which options of a document name files, folders and models, by their types."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

At = tuple[str | int, ...]
# path: a file or a folder.  model: a folder, a built-in name or a hub id.  code: a name, or `file.py:Class`.
# output: a folder that is made.
Kind = Literal["path", "model", "code", "output"]


@dataclass(frozen=True)
class Names:
    """Marks a text option that names something on the disk.  One of type `Path` needs no mark."""

    kind: Kind


ModelName = Annotated[str, Names("model")]
OutputFolder = Annotated[str, Names("output")]
# What a text option of these names says, whoever's pass or evaluation has it.
_BY_NAME: dict[str, Kind] = {"data": "path", "reference": "model", "source": "code"}


def placed(document: type[BaseModel], values: Mapping[str, Any]) -> dict[At, Kind]:
    """Where in the values of a document, as JSON has them, something on the disk is named."""
    found: dict[At, Kind] = {}
    for name, field in document.model_fields.items():
        alias = field.validation_alias or field.alias
        key = alias if isinstance(alias, str) else name
        if key in values:
            # pydantic takes the marks of the outermost type away from it.
            kind = next((mark.kind for mark in field.metadata if isinstance(mark, Names)), _BY_NAME.get(key))
            found |= {(key, *below): of for below, of in _inside(field.annotation, values[key], kind)}
    return found


def _inside(annotation: Any, value: Any, kind: Kind | None = None) -> Iterator[tuple[At, Kind]]:
    """Places below a value of this type.  kind: the mark of the types round it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        kind = next((mark.kind for mark in inner[1:] if isinstance(mark, Names)), kind)
        yield from _inside(inner[0], value, kind)
    elif origin in (Union, types.UnionType):
        for one in inner:
            yield from _inside(one, value, kind)
    elif isinstance(value, list):
        for one in inner:
            for index, item in enumerate(value):
                yield from (((index, *below), of) for below, of in _inside(one, item, kind))
    elif isinstance(value, Mapping) and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from placed(annotation, value).items()
    elif isinstance(value, Mapping) and inner:
        for key, item in value.items():
            yield from (((key, *below), of) for below, of in _inside(inner[-1], item, kind))
    elif isinstance(value, str) and value:
        if isinstance(annotation, type) and issubclass(annotation, PurePath):
            yield (), "path"
        elif annotation is str and kind is not None:
            yield (), kind
