"""Views in a terminal, with rich. Fits 80 columns."""

from __future__ import annotations

import io
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from umcompress.report.table import Table, View


def show(view: View, file: TextIO | None = None, width: int | None = None) -> None:
    """Print a view. Without a width: the terminal's own, or 80 where there is none."""
    console = Console(file=file, width=width, highlight=False, markup=False, emoji=False)
    for index, part in enumerate(view):
        if isinstance(part, str):
            console.print(Text(part), soft_wrap=True)
            continue
        if index:
            console.print()
        _table(console, part)


def text(view: View, width: int = 80) -> str:
    """A view as plain text."""
    file = io.StringIO()
    show(view, file, width)
    return file.getvalue()


def _table(console: Console, table: Table) -> None:
    if table.title:
        console.print(Text(table.title, style="bold"))
    drawn = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for column in table.columns:
        drawn.add_column(
            Text(column.name),
            justify="right" if column.right else "left",
            no_wrap=not column.fold,
            overflow="fold",
        )
    for row in table.rows:
        drawn.add_row(*(Text(cell) for cell in row))
    console.print(drawn)
    for note in table.notes:
        console.print(Text(note, style="dim"))
