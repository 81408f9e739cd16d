"""What `umcompress passes` says: the passes there are, and the options of one, from its schema."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

from umcompress.documents import Document
from umcompress.render.table import Table, View, words
from umcompress.schema import type_text


def passes_view(passes: Mapping[str, type[Document]]) -> View:
    """One line a pass."""
    rows = tuple((name, summary(cls)) for name, cls in passes.items())
    table = Table("Passes", (words("pass"), words("what it does")), rows)
    return (table, "next: umcompress passes NAME shows the options of one")


def pass_view(name: str, cls: type[Document]) -> View:
    """What a pass does, and each option with its type, default and meaning."""
    schema = cls.model_json_schema(by_alias=True)
    required = schema.get("required", [])
    rows = []
    for option, prop in schema.get("properties", {}).items():
        default = "required" if option in required else _default(prop.get("default"))
        rows.append((option, type_text(prop, schema.get("$defs")), default, prop.get("description", "")))
    columns = (words("option"), words("type"), words("default"), words("meaning"))
    about = inspect.cleandoc(cls.__doc__ or "")
    example = ", ".join([f"pass: {name}", *(f"{option}: ..." for option in required)])
    return (f"{name}: {about}", Table("", columns, tuple(rows)), f"in a recipe: steps: [{{{example}}}]")


def summary(cls: type[Document]) -> str:
    """The first sentence of a class's docstring."""
    lines = inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split("\n")
    return " ".join(" ".join(lines).split()).split(". ")[0].rstrip(".")


def _default(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value)
