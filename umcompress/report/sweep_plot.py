"""The picture of a sweep: a panel a task, a line a series, bands for intervals.  Drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from umcompress.documents.base import TASKS, Task
from umcompress.documents.report import StepReport
from umcompress.documents.scores import Score
from umcompress.documents.sweep import Sweep, SweptCell
from umcompress.report.scores_view import change_of

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

# Told apart in grey by marker and dashes too.
_STYLES = [("#0b5fa5", "o", "-"), ("#c8501e", "s", "--"), ("#3a7d34", "^", "-."), ("#7b4fa3", "D", ":"),
           ("#a0761b", "v", "-"), ("#5f5f5f", "P", "--")]  # fmt: skip
SIZE, AT_WORK = "parameters, share of the unpruned model", "parameters at work in generation"
# An evaluation ("": the first that scores a task) and a task.
Panel = tuple[str, Task]


def panels_of(sweep: Sweep) -> list[Panel]:
    """A panel for each task of each evaluation."""
    every = sweep.baseline.evaluations or {"": sweep.baseline.scores}
    return [(name, task) for name, scores in every.items() for task in TASKS if task in scores]


def figure(sweep: Sweep, panels: Sequence[Panel] = ()) -> Figure:
    """Scores over the one axis of numbers, else over size; a row an evaluation, a column a task.

    A paired change has its own interval as band.
    """
    from matplotlib.figure import Figure

    panels = panels or panels_of(sweep)
    tasks, names = list(dict.fromkeys(task for _, task in panels)), list(dict.fromkeys(name for name, _ in panels))
    along, series = sweep.series()
    drawn = Figure(figsize=(5.2 * max(1, len(tasks)), 4.0 * max(1, len(names)) + 0.2), layout="constrained")
    for name, task in panels:
        panel = drawn.add_subplot(len(names), len(tasks), names.index(name) * len(tasks) + tasks.index(task) + 1)
        for number, (words, cells) in enumerate(series.items()):
            _line(panel, sweep, (name, task), along, words, cells, _STYLES[number % len(_STYLES)])
        level = _score(sweep.baseline, (name, task))
        if level is not None:
            _levels(panel, level)
            kind = f"{task} loss (lower is better)" if level.lower_is_better else f"{task} score"
            panel.set_ylabel(kind)
        panel.set_title(f"{task.capitalize()}{f': {name}' if name else ''}", fontsize=11)
        panel.set_xlabel(_size(sweep)[0] if along is None else axis_words(along, list(sweep.axes)))
        panel.grid(alpha=0.25)
    if panels:
        shown: dict[str, Artist] = {}
        for axes in drawn.axes:
            handles, labels = axes.get_legend_handles_labels()
            shown |= dict(zip(labels, handles, strict=True))
        # A character of a legend is about a fourteenth of an inch wide, with its line before it.
        fits = int(drawn.get_figwidth() * 14 / (max(map(len, shown), default=1) + 8))
        columns = max(1, min(2 * max(1, len(tasks)), fits))
        drawn.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=columns, frameon=False)
    drawn.suptitle(f"{sweep.recipe} on {sweep.model}; bands: 95 % intervals", fontsize="medium")
    return drawn


def axis_words(path: str, axes: Sequence[str] = ()) -> str:
    """`keep ratio`, or where the axes are of several steps `keep ratio (steps.1)`."""
    holder, _, key = path.rpartition(".")
    alike = all(other == holder or other.startswith(f"{holder}.") for other in axes)
    return key.replace("_", " ") if not holder or (axes and alike) else f"{key.replace('_', ' ')} ({holder})"


def points(
    sweep: Sweep, panel: Panel, along: str | None, cells: Sequence[SweptCell]
) -> list[tuple[float, float, float, float]]:
    """(x, value, low, high) of a series, by x."""
    found, size = list[tuple[float, float, float, float]](), _size(sweep)[1]
    for cell in cells:
        score = None if cell.result is None else _score(cell.result, panel)
        if cell.result is None or score is None:
            continue
        x = size(cell.result) if along is None else float(cell.values[along])
        low, high = score.low, score.high
        change = change_of(cell.result, (panel[0] or None, panel[1]))
        old = _score(sweep.baseline, panel)
        if change is not None and change.paired and old is not None:
            low, high = old.value + change.low, old.value + change.high
            # A share of right answers stays between none and all.
            if not old.lower_is_better and max(abs(old.value - 0.5), abs(score.value - 0.5)) <= 0.5:
                low, high = max(0.0, low), min(1.0, high)
        found.append((x, score.value, low, high))
    return sorted(found)


def _score(step: StepReport, panel: Panel) -> Score | None:
    name, task = panel
    return (step.evaluations.get(name, {}) if name else step.scores).get(task)


def _size(sweep: Sweep) -> tuple[str, Callable[[StepReport], float]]:
    """What stands for size: all parameters; where these hardly differ, those at work in generation."""
    base = sweep.baseline.parameters
    results = [cell.result for cell in sweep.cells if cell.result is not None]
    shares = [step.parameters.total / base.total for step in results]
    at_work = base.active.get("generation")
    if at_work and max(shares) - min(shares) < 0.01:
        return f"{AT_WORK}, share of the unpruned model", lambda step: step.parameters.active["generation"] / at_work
    return SIZE, lambda step: step.parameters.total / base.total


def _line(
    panel: Any, sweep: Sweep, place: Panel, along: str | None, name: str, cells: Sequence[SweptCell],
    style: tuple[str, str, str],
) -> None:  # fmt: skip
    found = points(sweep, place, along, cells)
    if not found:
        return
    x, value, low, high = zip(*found, strict=True)
    colour, marker, dashes = style
    if all(place.is_integer() for place in x):
        panel.xaxis.get_major_locator().set_params(integer=True)
    panel.plot(x, value, color=colour, marker=marker, linestyle=dashes, label=name)
    panel.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def _levels(panel: Any, score: Score) -> None:
    panel.axhline(score.value, color="#222222", linewidth=1.2, label="unpruned")
    if score.chance is not None:
        panel.axhline(score.chance, color="#777777", linewidth=1.0, linestyle=(0, (1, 3)), label="chance")
