"""Views as text, with rich: in a terminal as wide as that is; in a file or a pipe, as wide as they need to be."""

from __future__ import annotations

import io
import sys
import textwrap
from collections.abc import Sequence
from typing import TextIO

from rich import box
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table as RichTable
from rich.text import Text

from umcompress.report.table import Cell, Table, Tone, View

_WIDEST = 100_000  # of a console that cuts nothing
_BAR = 6  # places of a bar
_STYLES: dict[Tone, str] = {"better": "green", "worse": "red", "noise": "dim"}


def show(view: View, file: TextIO | None = None, width: int | None = None) -> None:
    """Print a view.  Without a width: the terminal's own, or where there is none, without any limit.

    In a terminal changes have colours, and shares bars where there is room; elsewhere all is plain text.
    Cells that may fold give way where there is a limit, between words: no word and no path is ever broken.
    """
    console = Console(file=file, width=_WIDEST, highlight=False, markup=False, emoji=False)
    if width is None and (file or sys.stdout).isatty():
        width = Console(file=file).width
    for index, part in enumerate(view):
        if isinstance(part, str):
            console.print(Text(part), soft_wrap=True)
            continue
        if index:
            console.print()
        _table(console, part, width)


def text(view: View, width: int = 80) -> str:
    """A view as plain text."""
    file = io.StringIO()
    show(view, file, width)
    return file.getvalue()


def _table(console: Console, table: Table, width: int | None) -> None:
    if table.title:
        console.print(Text(table.title, style="bold"))
    drawn = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    widths = _widths(table, width)
    bars = _barred(console, table, widths, width)
    for place, (column, space) in enumerate(zip(table.columns, widths, strict=True)):
        justify: JustifyMethod = "right" if column.right else "left"
        whole = space + (_BAR + 1 if place in bars else 0)
        drawn.add_column(Text(column.name), justify=justify, no_wrap=not column.fold, overflow="fold", width=whole)
    for row in table.rows:
        drawn.add_row(*(_cell(cell, place in bars) for place, cell in enumerate(row)))
    console.print(drawn)
    for note in table.notes:
        lines = [note] if width is None else textwrap.wrap(note, width, break_long_words=False, break_on_hyphens=False)
        console.print(Text("\n".join(lines), style="dim"), soft_wrap=True)


def _barred(console: Console, table: Table, widths: Sequence[int], limit: int | None) -> set[int]:
    """The columns that get bars: those of shares, in a terminal that can show them and has room."""
    shares = {
        place for row in table.rows for place, cell in enumerate(row)
        if isinstance(cell, Cell) and cell.share is not None
    }  # fmt: skip
    if limit is None or not console.is_terminal or not console.encoding.startswith("utf"):
        return set()
    return shares if sum(widths) + 2 * (len(widths) - 1) + (_BAR + 1) * len(shares) <= limit else set()


def _cell(cell: str, barred: bool) -> Text:
    tone = cell.tone if isinstance(cell, Cell) else None
    shown = Text(cell, style=_STYLES[tone] if tone else "")
    if not barred:
        return shown
    share = cell.share if isinstance(cell, Cell) else None
    full = 0 if share is None else max(round(_BAR * min(share, 1.0)), 1 if share > 0 else 0)
    shown.append(" ")
    shown.append("█" * full, style="cyan")
    shown.append(("░" if share is not None else " ") * (_BAR - full), style="dim")
    return shown


def _widths(table: Table, limit: int | None) -> list[int]:
    """Of each column; the widest of those that may fold gives way first, down to its longest word."""
    cells = [[column.name, *(row[place] for row in table.rows)] for place, column in enumerate(table.columns)]
    widths = [max(cell_len(line) for cell in column for line in cell.split("\n")) for column in cells]
    words = [max(cell_len(word) for cell in column for word in cell.split() or [""]) for column in cells]
    folds = [column.fold for column in table.columns]
    slack = [space - least if fold else 0 for space, least, fold in zip(widths, words, folds, strict=True)]
    # Between columns there are two places.
    too_wide = 0 if limit is None else max(0, sum(widths) + 2 * (len(widths) - 1) - limit)
    for _ in range(min(too_wide, sum(slack))):
        place = max((place for place, left in enumerate(slack) if left), key=lambda place: widths[place])
        widths[place] -= 1
        slack[place] -= 1
    return widths
