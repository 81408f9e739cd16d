"""Pictures of a sweep as files: sweep.png, sweep.svg, and sweep.html with the table."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from umcompress.documents.base import Task
from umcompress.documents.sweep import Sweep
from umcompress.report import pictures
from umcompress.report.sweep_plot import panels_of
from umcompress.report.sweep_samples import PICTURE, sample_series, sample_strips, write_samples
from umcompress.report.sweep_view import sweep_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_pictures(sweep: Sweep, folder: Path) -> list[str]:
    """The files written, by name; none but the page where nothing can draw."""

    def drawn(*panels: tuple[str, Task]) -> Figure:
        from umcompress.report.sweep_plot import figure

        return figure(sweep, panels)

    own = panels_of(sweep)
    samples = sample_series(sweep, folder)
    written = pictures.write_pictures(
        folder, "sweep", f"{sweep.recipe} on {sweep.model}", [sweep_table(sweep)], drawn,
        [partial(drawn, panel) for panel in own], sample_strips(samples),
    )  # fmt: skip
    return written + write_samples(samples, folder / PICTURE)
