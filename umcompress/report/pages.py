"""HTML pages from templates: each one file that needs nothing else."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from umcompress.documents.atomic import write_text_atomic
from umcompress.errors import UsageError


def rendered(template: str, **values: Any) -> str:
    """A page of `templates/`.  Text is escaped; only charts, which are made here, are markup."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True,
    )  # fmt: skip
    return environment.get_template(template).render(**values)


def markup(svg: str) -> Any:
    """A chart of ours as it is."""
    from markupsafe import Markup

    return Markup(svg)


def inlined(content: bytes) -> str:
    """A PNG as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"


def write_file(file: Path, text: str) -> Path:
    """Write a page.  UsageError where that cannot be."""
    try:
        write_text_atomic(file, text)
    except OSError as error:
        raise UsageError(f"write {file}", str(error.strerror), "name a file in a folder that exists") from error
    return file
