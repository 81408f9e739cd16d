"""What `umcompress passes` says: the passes there are, and the options of one, from its schema."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

from umcompress.documents.base import Document
from umcompress.documents.previews import OptionInfo, PassInfo, PassList
from umcompress.documents.schema import type_text
from umcompress.report.table import Table, View, words


def list_passes(passes: Mapping[str, type[Document]]) -> PassList:
    """Each in one sentence."""
    return PassList(passes=tuple(PassInfo(name=name, about=summary(cls)) for name, cls in passes.items()))


def describe_pass(name: str, cls: type[Document]) -> PassInfo:
    """What a pass does, and each option with its type, default and meaning."""
    schema = cls.model_json_schema(by_alias=True)
    required = schema.get("required", [])
    options = tuple(
        OptionInfo(
            name=option, type=type_text(prop, schema.get("$defs")), required=option in required,
            default=prop.get("default"), meaning=prop.get("description", ""),
        )
        for option, prop in schema.get("properties", {}).items()
    )  # fmt: skip
    return PassInfo(name=name, about=inspect.cleandoc(cls.__doc__ or ""), options=options)


def passes_view(found: PassList) -> View:
    """One line a pass."""
    rows = tuple((one.name, one.about) for one in found.passes)
    table = Table("Passes", (words("pass"), words("what it does")), rows)
    return (table, "next: umcompress passes NAME shows the options of one")


def pass_view(found: PassInfo) -> View:
    """A row an option, and how a recipe names the pass."""
    rows = tuple(
        (option.name, option.type, "required" if option.required else _default(option.default), option.meaning)
        for option in found.options
    )
    columns = (words("option"), words("type"), words("default"), words("meaning"))
    required = (f"{option.name}: ..." for option in found.options if option.required)
    example = ", ".join([f"pass: {found.name}", *required])
    return (f"{found.name}: {found.about}", Table("", columns, rows), f"in a recipe: steps: [{{{example}}}]")


def summary(cls: type[Document]) -> str:
    """The first sentence of a class's docstring."""
    lines = inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split("\n")
    return " ".join(" ".join(lines).split()).split(". ")[0].rstrip(".")


def _default(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value)
