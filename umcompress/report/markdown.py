"""Views as Markdown."""

from __future__ import annotations

from umcompress.report.table import Table, View


def text(view: View) -> str:
    """A view as Markdown: each table with its title as a heading, each line a paragraph."""
    parts = [f"{_escape(part)}\n" if isinstance(part, str) else _table(part) for part in view]
    return "\n".join(parts)


def _table(table: Table) -> str:
    lines = [f"### {_escape(table.title)}", ""] if table.title else []
    lines.append(_row([column.name for column in table.columns]))
    lines.append(_row(["---:" if column.right else "---" for column in table.columns], escape=False))
    lines.extend(_row(list(row)) for row in table.rows)
    for note in table.notes:
        lines.extend(["", _escape(note)])
    return "\n".join([*lines, ""])


def _row(cells: list[str], escape: bool = True) -> str:
    return f"| {' | '.join(_escape(cell) if escape else cell for cell in cells)} |"


def _escape(text: str) -> str:
    for character in "\\|*_<`":
        text = text.replace(character, f"\\{character}")
    return text.replace("\n", "<br>")
