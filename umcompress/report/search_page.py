"""Pictures of a search as files: search.png, search.svg, and search.html with the tables."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from umcompress.documents.search import Search
from umcompress.report import pictures
from umcompress.report.search_view import chosen_table, front_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_pictures(found: Search, folder: Path) -> list[str]:
    """The files written, by name; none but the page where nothing can draw."""

    def front() -> Figure:
        from umcompress.report.search_plot import front_figure

        return front_figure(found)

    def chosen() -> Figure:
        from umcompress.report.search_plot import choices_figure

        return choices_figure(found)

    tables, title = [front_table(found), chosen_table(found)], f"Search with {found.recipe} on {found.model}"
    return pictures.write_pictures(folder, "search", title, tables, front, [partial(front), partial(chosen)])
