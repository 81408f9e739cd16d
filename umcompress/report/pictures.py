"""Write pictures as files: NAME.png, NAME.svg, and NAME.html that needs no other file.  Drawn by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umcompress.report.pages import markup, rendered
from umcompress.report.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NO_PICTURES = "no pictures: matplotlib is not there; pip install 'umcompress[plots]' and give the same command again"
# Under a heading: pictures as addresses that hold them, with a line each.
Strips = Mapping[str, Sequence[tuple[str, str]]]


def can_draw() -> bool:
    return find_spec("matplotlib") is not None


def write_pictures(
    folder: Path, name: str, title: str, tables: Sequence[Table], whole: Callable[[], Figure],
    panels: Sequence[Callable[[], Figure]], strips: Strips | None = None,
) -> list[str]:  # fmt: skip
    """The files written, by name.  Without matplotlib the page has the tables alone, and nothing else is written.

    whole: the picture of the files; panels: its parts, one by one, for the page; strips: pictures below them.
    """
    drawings: list[Any] = []
    if drawable := can_draw():
        _save(whole, folder / f"{name}.png", folder / f"{name}.svg")
        drawings = [_drawing(panel) for panel in panels]
    page = rendered(
        "pictures.html", title=title, facts=[], drawings=drawings, no_pictures=NO_PICTURES, strips=strips or {},
        tables=tables, folded=[],
    )  # fmt: skip
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


def _drawing(make: Callable[[], Figure]) -> Any:
    text = _svg(make)
    return markup(text[text.index("<svg") :])
