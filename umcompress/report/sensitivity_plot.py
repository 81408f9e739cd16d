"""The picture of a model's sensitivity: heat maps by layer, similarity curves beside them.  Drawn by matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from umcompress.documents.alone import PARTS, PartScore, Sensitivity
from umcompress.documents.base import Task
from umcompress.report.sensitivity_view import CHANGES, owner_words, owners

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The palest is nearly white and the darkest nearly black, so that grey prints keep the order.
_COLOURS = "YlOrBr"
_WORDS = {"attention": "attention", "feed_forward": "feed-forward", "block": "block"}
_CURVES = {"attention": ("#0b5fa5", "o", "-"), "feed_forward": ("#c8501e", "s", "--"), "block": ("#3a7d34", "^", "-.")}
Owner = tuple[str, str]


def figure(
    found: Sensitivity, owner: Owner | None = None, task: Task | None = None, curves: bool = True,
    only_curves: bool = False,
) -> Figure:  # fmt: skip
    """A row for each component; a heat map a task, then the similarities.  Of one owner or task where it is given."""
    from matplotlib.figure import Figure

    rows = [owner] if owner else owners(found)
    tasks: list[Task] = [task] if task else [] if only_curves else list(found.baseline)
    layers = [len({part.layer for part in _own(found, one)}) for one in rows]
    drawn = Figure(figsize=(5.2 * (len(tasks) + curves), sum(1.5 + 0.34 * count for count in layers)),
                   layout="constrained")  # fmt: skip
    grid = drawn.add_gridspec(len(rows), len(tasks) + curves, height_ratios=[1.5 + 0.34 * count for count in layers])
    for row, one in enumerate(rows):
        for column, each in enumerate(tasks):
            _heat(drawn.add_subplot(grid[row, column]), found, one, each)
        if curves:
            _similar(drawn.add_subplot(grid[row, len(tasks)]), found, one)
    if owner is None:
        drawn.suptitle(f"{found.model}: one part of one layer halved or gone", fontsize="medium")
    return drawn


def _own(found: Sensitivity, owner: Owner) -> list[PartScore]:
    return [part for part in found.parts if (part.component, part.stack) == owner]


def _heat(panel: Any, found: Sensitivity, owner: Owner, task: Task) -> None:
    """layers by changes; one scale of colours a task, so that components can be compared."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    rises = [part.changes[task].value for part in found.parts if task in part.changes]
    top = max(*rises, 1e-9, 1e-9)
    scale, colours = LogNorm(top / 1000, top, clip=True), colormaps[_COLOURS]
    columns = [(part, change) for part in PARTS for change in CHANGES]
    layers = sorted({part.layer for part in _own(found, owner)})
    cells = {(part.layer, part.part, part.change): part for part in _own(found, owner)}
    values = np.full((len(layers), len(columns)), np.nan)
    for row, layer in enumerate(layers):
        for column, key in enumerate(columns):
            change = cells[layer, *key].changes.get(task)
            if change is None:
                panel.text(column, row, "–", ha="center", va="center", color="#666666", fontsize=8)
                continue
            values[row, column] = max(change.value, top / 1000)
            dark = sum(colours(scale(values[row, column]))[:3]) < 1.4
            panel.text(
                column, row, f"{change.value:+.2g}" if change.value else "0", ha="center", va="center", fontsize=8,
                color="#ffffff" if dark else "#111111", style="normal" if change.beyond_noise else "italic",
                alpha=1.0 if change.beyond_noise else 0.65,
            )  # fmt: skip
    panel.imshow(values, norm=scale, cmap=colours, aspect="auto")
    panel.set_xticks(range(len(columns)), ["half" if change == "halved" else "gone" for _, change in columns])
    panel.set_yticks(range(len(layers)), [str(layer) for layer in layers])
    panel.set_ylabel("layer")
    panel.tick_params(length=0)
    for number, part in enumerate(PARTS):
        panel.annotate(
            _WORDS[part], (2 * number + 0.5, 0), xycoords=("data", "axes fraction"), xytext=(0, -22),
            textcoords="offset points", ha="center", va="top", fontsize=10,
        )  # fmt: skip
        if number:
            panel.axvline(2 * number - 0.5, color="#ffffff", linewidth=3)
    level = found.baseline[task].value
    panel.set_title(f"{owner_words(found, *owner)}: change of {task} loss ({level:.3g})", fontsize=10)


def _similar(panel: Any, found: Sensitivity, owner: Owner) -> None:
    """Cosine by layer; the same parts, on the task that the component is for where both were measured."""
    own = [one for one in found.similarities if (one.component, one.stack) == owner]
    tasks = list(dict.fromkeys(one.task for one in own))
    task = owner[0] if owner[0] in tasks else next(iter(tasks), None)
    for part in PARTS:
        line = sorted((one.layer, one.cosine) for one in own if one.part == part and one.task == task)
        if line:
            colour, marker, dashes = _CURVES[part]
            x, y = zip(*line, strict=True)
            panel.plot(x, y, color=colour, marker=marker, linestyle=dashes, label=_WORDS[part])
    panel.set_title(f"{owner_words(found, *owner)}: similarity during {task}", fontsize=10)
    panel.set_xlabel("layer")
    panel.set_ylabel("cosine before and after")
    panel.locator_params(axis="x", integer=True)
    panel.grid(alpha=0.25)
    if panel.lines:
        panel.legend(frameon=False, fontsize=9)
