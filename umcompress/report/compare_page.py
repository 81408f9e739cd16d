"""A comparison as a page or a picture: Pareto charts, tables, the samples of every run."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from umcompress.errors import UsageError
from umcompress.report.compare import Comparison
from umcompress.report.compare_view import compare_view
from umcompress.report.pages import inlined, markup, rendered, write_file

NO_PICTURE = "no charts: matplotlib is not there; pip install 'umcompress[plots]' and give the same command again"


def page(comparison: Comparison, pictures: Mapping[str, bytes] | None = None) -> str:
    """The page.  `pictures`: samples of the runs' results, by label."""
    known = pictures or {}
    labels = [run for run in comparison.runs if run.label in known]
    titles = ", ".join(f"{run.label} = {run.name}" for run in comparison.runs)
    return rendered(
        "compare.html", title=f"{len(comparison.runs)} runs compared", facts=[titles],
        drawings=[markup(chart) for chart in _svgs(comparison)], no_plot=NO_PICTURE,
        pictures=[(f"{run.label} = {run.name}", inlined(known[run.label])) for run in labels],
        parts=compare_view(comparison, everything=True)[len(comparison.runs) :],
        folded=[("Comparison", json.dumps(comparison.json_values()["differences"], indent=1, ensure_ascii=False))],
    )  # fmt: skip


def write_page(comparison: Comparison, file: Path) -> Path:
    """Write the page, with the samples that lie in the runs' folders.  UsageError where that cannot be."""
    pictures = {}
    for run in comparison.runs:
        samples = run.steps[run.result].samples
        if samples and (path := Path(run.name) / samples).is_file():
            pictures[run.label] = path.read_bytes()
    return write_file(file, page(comparison, pictures))


def write_picture(comparison: Comparison, file: Path) -> Path:
    """Write the charts as a picture.  UsageError where nothing can draw, or the file cannot be written."""
    if find_spec("matplotlib") is None:
        raise UsageError(f"write {file}", "matplotlib is not there", "pip install 'umcompress[plots]'")
    from umcompress.report.compare_plot import figure

    try:
        figure(comparison).savefig(file, format="png", dpi=150)
    except OSError as error:
        raise UsageError(f"write {file}", str(error.strerror), "name a file in a folder that exists") from error
    return file


def _svgs(comparison: Comparison) -> list[str]:
    """The charts, the same bytes for the same comparison; none where matplotlib is not there."""
    if find_spec("matplotlib") is None:
        return []
    import matplotlib

    from umcompress.report.compare_plot import panel_figures

    found = []
    with matplotlib.rc_context({"svg.hashsalt": "umcompress"}):
        for figure in panel_figures(comparison):
            text = io.StringIO()
            figure.savefig(text, format="svg", metadata={"Date": None})
            found.append(text.getvalue()[text.getvalue().index("<svg") :])
    return found
