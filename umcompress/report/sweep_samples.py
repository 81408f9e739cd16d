"""Sample pictures along the series of a sweep: what the same prompts and seeds give, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from umcompress.documents.sweep import Sweep, short
from umcompress.report.pages import inlined

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

PICTURE = "sweep-samples.png"
# Pixels: a column of the picture, and the line of words over each sheet of samples.
_WIDTH, _LINE = 480, 18
Sheet = tuple[str, Path]


def sample_series(sweep: Sweep, folder: Path) -> dict[str, list[Sheet]]:
    """By series, each cell's value and its sheet of samples; the unpruned model's first. Without sheets: nothing."""
    along, series = sweep.series()
    found: dict[str, list[Sheet]] = {}
    for name, cells in series.items():
        sheets = []
        for cell in cells:
            path = cell.values.get(along) if along else list(cell.values.values())[-1]
            if cell.result is not None and cell.result.samples:
                sheets.append((short(path), folder / "cells" / cell.name / cell.result.samples))
        first = next((cell for cell in cells if sheets and cell.result is not None), None)
        if first is not None and sweep.baseline.samples:
            sheets.insert(0, ("unpruned", folder / "cells" / first.name / sweep.baseline.samples))
        there = [(words, path) for words, path in sheets if path.is_file()]
        if len(there) > 1:
            found[name] = there
    return found


def sample_strips(series: dict[str, list[Sheet]]) -> dict[str, list[tuple[str, str]]]:
    """The sheets as a page shows them, a strip a series."""
    return {
        f"Samples: {name}": [(words, inlined(path.read_bytes())) for words, path in sheets]
        for name, sheets in series.items()
    }


def write_samples(series: dict[str, list[Sheet]], file: Path) -> list[str]:
    """A column a series, a sheet a cell; the file's name, where there is anything to show."""
    if not series:
        return []
    from PIL import Image, ImageDraw

    columns = [_column(name, sheets) for name, sheets in series.items()]
    height = max(sum(picture.height + _LINE for _, picture in column) for column in columns)
    page = Image.new("RGB", (len(columns) * (_WIDTH + 12), height), "white")
    draw = ImageDraw.Draw(page)
    for number, column in enumerate(columns):
        x, y = number * (_WIDTH + 12), 0
        for words, picture in column:
            draw.text((x + 4, y + 3), words, fill="black")
            page.paste(picture, (x, y + _LINE))
            y += picture.height + _LINE
    page.save(file)
    return [file.name]


def _column(name: str, sheets: Sequence[Sheet]) -> list[tuple[str, Picture]]:
    from umcompress.models.pictures import open_picture

    found = []
    for words, path in sheets:
        picture = open_picture(path, f"the samples {path}")
        height = round(picture.height * _WIDTH / picture.width)
        found.append((f"{name}: {words}", picture.resize((_WIDTH, height))))
    return found
