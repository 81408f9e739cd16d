"""The parts of a view: tables and lines of text, built from documents and printed in any format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tone = Literal["better", "worse", "noise"]


class Cell(str):
    """Text of a cell with what a terminal shows besides: a tone as a colour, a share (0 to 1) as a bar."""

    tone: Tone | None
    share: float | None

    def __new__(cls, text: str, tone: Tone | None = None, share: float | None = None) -> Cell:
        made = super().__new__(cls, text)
        made.tone, made.share = tone, share
        return made


@dataclass(frozen=True)
class Column:
    """`right` aligns numbers; a column that may `fold` gives way when the terminal is narrow."""

    name: str
    right: bool = True
    fold: bool = False


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


View = tuple[Table | str, ...]


def text_column(name: str) -> Column:
    """A left-aligned column of text."""
    return Column(name, right=False, fold=True)


def number_columns(*names: str) -> tuple[Column, ...]:
    """Right-aligned columns of numbers."""
    return tuple(Column(name) for name in names)


def short_number(count: float) -> str:
    """A number with three digits and a unit: 6_312_000 -> 6.31M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size * 0.9995:
            scaled = count / size
            digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{scaled:.{digits}f}{unit}"
    return f"{count:g}"


def parameters_cell(count: int, whole: int) -> Cell:
    """A number of parameters, with a bar for the share of the whole that it is."""
    return Cell(short_number(count), share=count / whole if whole else None)


def size_text(count: float) -> str:
    """Bytes in units of 1000: 6_312_000 -> 6.31MB."""
    return f"{short_number(count)}B"


def seconds(time: float) -> str:
    """A duration: 12.3s, 4m05s, 2h10m."""
    if time < 99.95:
        return f"{time:.1f}s"
    minutes, rest = divmod(round(time), 60)
    if minutes < 100:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"
