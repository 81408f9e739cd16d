"""Pareto charts of a comparison: scores against parameters at work and against measured time.  Drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from umcompress.documents.base import TASKS, Task
from umcompress.documents.report import SPEED_NOISE, StepReport
from umcompress.documents.scores import printed
from umcompress.report.compare import ComparedRun, Comparison
from umcompress.report.scores_view import Entry, entries, entry_name, score_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = {"u": "#2566c9", "g": "#c2501a"}
Place = Callable[[StepReport], tuple[float, float] | None]  # (x, half of its noise)


def figure(comparison: Comparison) -> Figure:
    """A row for each evaluation and task, a column for parameters and one for time; a letter for each run.

    Filled: no other run is better, beyond noise.  Whiskers: 95 % intervals, and the spread of timings.
    """
    from matplotlib.figure import Figure

    scored = _scored(comparison)
    drawn = Figure(figsize=(10, 3.6 * max(1, len(scored))), layout="constrained")
    panels = drawn.subplots(max(1, len(scored)), 2, squeeze=False)
    for row, entry in zip(panels, scored, strict=False):
        for panel, timed in zip(row, (False, True), strict=True):
            _drawn(panel, comparison, entry, timed)
    named = ", ".join(f"{run.label} {run.name}" for run in comparison.runs)
    drawn.suptitle(_wrapped(f"{named}; filled: Pareto-optimal beyond noise"), fontsize="small")
    return drawn


def panel_figures(comparison: Comparison) -> list[Figure]:
    """The same panels, each a picture of its own: below each other where a page is narrow."""
    from matplotlib.figure import Figure

    figures = []
    for entry in _scored(comparison):
        for timed in (False, True):
            figures.append(one := Figure(figsize=(5, 3.6), layout="constrained"))
            _drawn(one.subplots(), comparison, entry, timed)
    return figures


def _scored(comparison: Comparison) -> list[Entry]:
    return entries([run.steps[run.result] for run in comparison.runs])


def _drawn(panel: Any, comparison: Comparison, entry: Entry, timed: bool) -> None:
    task = entry[1]
    _panel(panel, comparison, entry, partial(_time if timed else _active, task))
    panel.set_xlabel(f"measured time of {task}, baseline 1" if timed else f"parameters at work in {task}, millions")


def _wrapped(text: str) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, 110, break_long_words=False, break_on_hyphens=False))


def _active(task: Task, step: StepReport) -> tuple[float, float] | None:
    count = step.parameters.active.get(task)
    return None if count is None else (count / 1e6, 0.0)


def _time(task: Task, step: StepReport) -> tuple[float, float] | None:
    speed = step.speed.get(task)
    if speed is None:
        return None
    return 1 / speed.ratio, max(speed.noise or 0.0, SPEED_NOISE) / speed.ratio


def _panel(panel: Any, comparison: Comparison, entry: Entry, place: Place) -> None:
    colour = _COLOURS["u" if entry[1] == TASKS[0] else "g"]
    for run, (x, half), step in _placed(comparison.runs, place):
        score = score_of(step, entry)
        if score is None:
            continue
        shown = printed(score)
        whiskers = [[shown.value - shown.low], [shown.high - shown.value]]
        panel.errorbar(
            [x], [shown.value], yerr=whiskers, xerr=[half], fmt="o", color=colour, capsize=2, linewidth=1,
            markerfacecolor=colour if run.pareto else "white",
        )
        panel.annotate(run.label, (x, shown.value), xytext=(6, 6), textcoords="offset points")
    score = next((found for run in comparison.runs if (found := score_of(run.steps[run.result], entry))), None)
    lower = score is not None and (score.lower_is_better or score.printed == "perplexity")
    what = (score.printed or ("loss" if lower else "score")) if score else "score"
    panel.set_ylabel(f"{entry_name(entry)}\n{what}{' (lower is better)' if lower else ''}")
    panel.grid(alpha=0.25)


def _placed(
    runs: Sequence[ComparedRun], place: Place
) -> list[tuple[ComparedRun, tuple[float, float], StepReport]]:
    """The runs that can be held against the first, with their place on the axis."""
    found = []
    for run in runs:
        step = run.steps[run.result]
        if not run.reasons and (at := place(step)) is not None:
            found.append((run, at, step))
    return found
