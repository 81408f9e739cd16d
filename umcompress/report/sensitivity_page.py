"""Pictures of a model's sensitivity as files: sensitivity.png, sensitivity.svg, and sensitivity.html with tables."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umcompress.documents.alone import Sensitivity
from umcompress.report import pictures
from umcompress.report.sensitivity_view import loss_tables, owners, similarity_tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_pictures(found: Sensitivity, folder: Path) -> list[str]:
    """The files written, by name; none but the page where nothing can draw."""

    def drawn(**part: Any) -> Figure:
        from umcompress.report.sensitivity_plot import figure

        return figure(found, **part)

    panels: list[Callable[[], Figure]] = []
    for owner in owners(found):
        panels += [partial(drawn, owner=owner, task=task, curves=False) for task in found.baseline]
        panels.append(partial(drawn, owner=owner, only_curves=True))
    tables = [*loss_tables(found), *similarity_tables(found)]
    return pictures.write_pictures(folder, "sensitivity", f"Sensitivity of {found.model}", tables, drawn, panels)
