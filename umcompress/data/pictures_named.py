"""Which pictures the rows of a data file name."""

from __future__ import annotations

import json
from pathlib import Path

from umcompress.data.calibration_file import JSON
from umcompress.documents.lines import lines_of, text_of


def pictures_named(file: Path) -> list[Path]:
    """The files that `image` of its JSON lines names, as seen from its folder. Rows that are none are left aside."""
    if file.suffix.lower() not in JSON:
        return []
    try:
        lines = lines_of(text_of(file))
    except (OSError, UnicodeDecodeError):  # whoever reads the rows says so
        return []
    names = dict.fromkeys(name for line in lines if '"image"' in line and (name := _image(line)) is not None)
    return [file.parent / name for name in names]


def _image(line: str) -> str | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    name = row.get("image") if isinstance(row, dict) else None
    return name if isinstance(name, str) and name and "\0" not in name else None
