"""Pictures of a sweep as files: sweep.png, sweep.svg, and sweep.html with the table."""

from __future__ import annotations

import io
from html import escape
from importlib.util import find_spec
from pathlib import Path

from umcompress.documents.sweep import Sweep
from umcompress.report.sweep_view import NO_PICTURES, sweep_table

PNG, SVG, PAGE = "sweep.png", "sweep.svg", "sweep.html"
_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:68rem;margin:1rem auto;padding:0 1rem;color-scheme:
  light dark}
figure{margin:0;background:#fff;border-radius:6px}svg{width:100%;height:auto}div{overflow-x:auto}
table{border-collapse:collapse}td,th{padding:.2rem .7rem;text-align:right;border-bottom:1px solid #8886}
td:first-child,th:first-child{text-align:left}"""


def write_pictures(sweep: Sweep, folder: Path) -> list[str]:
    """The files written, by name.  Without matplotlib the page has the table alone, and nothing else is written."""
    drawing = ""
    if can_draw := find_spec("matplotlib") is not None:
        drawing = _draw(sweep, folder)
    (folder / PAGE).write_text(page(sweep, drawing), encoding="utf-8")
    return [PNG, SVG, PAGE] if can_draw else []


def _draw(sweep: Sweep, folder: Path) -> str:
    """Write PNG and SVG; the SVG's text."""
    import matplotlib

    from umcompress.report.sweep_plot import figure

    # The same sweep gives the same bytes: no date, no random ids.
    with matplotlib.rc_context({"svg.hashsalt": "umcompress", "font.size": 11}):
        drawn = figure(sweep)
        drawn.savefig(folder / PNG, dpi=160)
        text = io.StringIO()
        drawn.savefig(text, format="svg", metadata={"Date": None})
    (folder / SVG).write_text(text.getvalue(), encoding="utf-8")
    return text.getvalue()[text.getvalue().index("<svg") :]


def page(sweep: Sweep, drawing: str) -> str:
    """One page that needs no other file."""
    table = sweep_table(sweep)
    heads = "".join(f"<th>{escape(column.name)}</th>" for column in table.columns)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    notes = "".join(f"<p>{escape(note)}</p>" for note in table.notes)
    shown = f"<figure>{drawing}</figure>" if drawing else f"<p>{escape(NO_PICTURES)}</p>"
    title = escape(f"{sweep.recipe} on {sweep.model}")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>{shown}"
        f"<div><table><tr>{heads}</tr>{rows}</table></div>{notes}</html>\n"
    )
