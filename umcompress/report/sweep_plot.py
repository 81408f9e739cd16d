"""The picture of a sweep: a panel a task, a line a series, bands for intervals.  Drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from umcompress.documents.base import TASKS, Task
from umcompress.documents.report import StepReport
from umcompress.documents.sweep import Sweep, SweptCell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Told apart in grey by marker and dashes too.
_STYLES = [("#0b5fa5", "o", "-"), ("#c8501e", "s", "--"), ("#3a7d34", "^", "-."), ("#7b4fa3", "D", ":"),
           ("#a0761b", "v", "-"), ("#5f5f5f", "P", "--")]  # fmt: skip
SIZE = "parameters, share of the unpruned model"


def figure(sweep: Sweep) -> Figure:
    """Scores over the one axis of numbers, else over size.  A paired change has its own interval as band."""
    from matplotlib.figure import Figure

    tasks = [task for task in TASKS if task in sweep.baseline.scores]
    along, series = sweep.series()
    drawn = Figure(figsize=(5.2 * max(1, len(tasks)), 4.2), layout="constrained")
    for place, task in enumerate(tasks, start=1):
        panel = drawn.add_subplot(1, len(tasks), place)
        for number, (name, cells) in enumerate(series.items()):
            _line(panel, sweep, task, along, name, cells, _STYLES[number % len(_STYLES)])
        _levels(panel, sweep.baseline, task)
        lower = sweep.baseline.scores[task].lower_is_better
        panel.set_title(task.capitalize())
        panel.set_ylabel(f"{task} loss (lower is better)" if lower else f"{task} score")
        panel.set_xlabel(SIZE if along is None else axis_words(along))
        panel.grid(alpha=0.25)
    if tasks:
        handles, labels = drawn.axes[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
    drawn.suptitle(f"{sweep.recipe} on {sweep.model}; bands: 95 % intervals", fontsize="medium")
    return drawn


def axis_words(path: str) -> str:
    """`keep ratio (steps.1)`."""
    holder, _, key = path.rpartition(".")
    return f"{key.replace('_', ' ')} ({holder})" if holder else key.replace("_", " ")


def points(sweep: Sweep, task: Task, along: str | None, cells: Sequence[SweptCell]) -> list[tuple[float, ...]]:
    """(x, value, low, high) of a series, by x."""
    found = []
    for cell in cells:
        if cell.result is None or task not in cell.result.scores:
            continue
        x = _share(cell.result, sweep.baseline) if along is None else float(cell.values[along])
        score, change = cell.result.scores[task], cell.result.changes.get(task)
        low, high = score.low, score.high
        if change is not None and change.paired:
            old = sweep.baseline.scores[task].value
            low, high = old + change.low, old + change.high
        found.append((x, score.value, low, high))
    return sorted(found)


def _line(
    panel: Any, sweep: Sweep, task: Task, along: str | None, name: str, cells: Sequence[SweptCell],
    style: tuple[str, str, str],
) -> None:  # fmt: skip
    found = points(sweep, task, along, cells)
    if not found:
        return
    x, value, low, high = zip(*found, strict=True)
    colour, marker, dashes = style
    panel.plot(x, value, color=colour, marker=marker, linestyle=dashes, label=name)
    panel.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def _levels(panel: Any, baseline: StepReport, task: Task) -> None:
    score = baseline.scores[task]
    panel.axhline(score.value, color="#222222", linewidth=1.2, label="unpruned")
    if score.chance is not None:
        panel.axhline(score.chance, color="#777777", linewidth=1.0, linestyle=(0, (1, 3)), label="chance")


def _share(step: StepReport, baseline: StepReport) -> float:
    return step.parameters.total / baseline.parameters.total
