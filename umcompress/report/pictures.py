"""Write pictures as files: NAME.png, NAME.svg, and NAME.html that needs no other file.  Drawn by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from umcompress.report.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NO_PICTURES = "no pictures: matplotlib is not there; pip install 'umcompress[plots]' and give the same command again"
# Panels stand beside each other where there is room, and below each other on a phone. Drawings keep a white ground in
# dark mode and in print: their colours are chosen for it.
_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:1rem auto;padding:0 1rem;color-scheme:
  light dark}
.panels{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0;flex:1 1 20rem;min-width:min(100%,20rem);background:#fff;
  color:#111;border-radius:6px;break-inside:avoid}
figure svg,figure img{width:100%;height:auto}figcaption{padding:0 .6rem .4rem}.wide{overflow-x:auto}
table{border-collapse:collapse;break-inside:avoid}td,th{padding:.2rem .7rem;text-align:right;border-bottom:1px solid
  #8886;white-space:nowrap}
td:first-child,th:first-child{text-align:left}"""


def can_draw() -> bool:
    return find_spec("matplotlib") is not None


def write_pictures(
    folder: Path, name: str, title: str, tables: Sequence[Table], whole: Callable[[], Figure],
    panels: Sequence[Callable[[], Figure]], below: str = "",
) -> list[str]:
    """The files written, by name.  Without matplotlib the page has the tables alone, and nothing else is written.

    whole: the picture of the files; panels: its parts, one by one, for the page; below: HTML after them.
    """
    drawings: list[str] = []
    if drawable := can_draw():
        _save(whole, folder / f"{name}.png", folder / f"{name}.svg")
        drawings = [_drawing(panel) for panel in panels]
    shown = "".join(f"<figure>{drawing}</figure>" for drawing in drawings)
    body = f'<div class="panels">{shown}</div>' if shown else f"<p>{escape(NO_PICTURES)}</p>"
    page = _page(title, body + below + "".join(map(_table, tables)))
    (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return [f"{name}.png", f"{name}.svg", f"{name}.html"] if drawable else []


def _save(make: Callable[[], Figure], png: Path, svg: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "umcompress", "font.size": 11}):
        drawn = make()
        drawn.savefig(png, dpi=160)
    svg.write_text(_svg(make), encoding="utf-8")


def _svg(make: Callable[[], Figure]) -> str:
    """The same picture gives the same bytes: no date, no random ids."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "umcompress", "font.size": 11}):
        make().savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _drawing(make: Callable[[], Figure]) -> str:
    text = _svg(make)
    return text[text.index("<svg") :]


def _table(table: Table) -> str:
    heads = "".join(f"<th>{escape(column.name)}</th>" for column in table.columns)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    notes = "".join(f"<p>{escape(note)}</p>" for note in table.notes)
    return f'<h2>{escape(table.title)}</h2><div class="wide"><table><tr>{heads}</tr>{rows}</table></div>{notes}'


def _page(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>{body}</html>\n"
    )
