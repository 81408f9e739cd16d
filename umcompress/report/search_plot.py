"""The picture of a search: the front of the tasks' losses, and what was chosen layer by layer.  Drawn by matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from umcompress.documents.base import TASKS
from umcompress.documents.search import Candidate, FrontPoint, Search
from umcompress.report.search_view import candidates

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FOUND, _ALIKE = ("#0b5fa5", "o"), ("#c8501e", "s")


def front_figure(found: Search) -> Figure:
    """Change of one loss against the other, of what was run; else the sums of what the choices change alone."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(5.6, 4.6), layout="constrained")
    panel = drawn.add_subplot()
    ran = any(one.result is not None for one in candidates(found))
    for style, name, points in (
        (_FOUND, "found", list[Candidate](found.front)),
        (_ALIKE, "every layer alike", [point.uniform for point in found.front if point.uniform is not None]),
    ):
        places = [(one.name, place) for one in points if (place := _place(found, one, ran)) is not None]
        if places:
            x, y = zip(*(place for _, place in places), strict=True)
            panel.plot(x, y, style[1], color=style[0], label=name, markersize=8)
            for label, place in places:
                panel.annotate(label.rpartition("-")[2], place, xytext=(6, 4), textcoords="offset points", fontsize=9)
    tasks = [task for task in TASKS if task in found.unpruned]
    if len(tasks) == 2:
        panel.set_xlabel(f"change of {tasks[0]} loss")
    else:
        panel.set_xticks(range(1, len(found.front) + 1), [point.name for point in found.front])
        panel.set_xlim(0, len(found.front) + 1)
    panel.set_ylabel(f"change of {tasks[-1]} loss (lower is better)")
    budgets = ", ".join(f"{measure} {share:g}" for measure, share in found.budgets.items())
    panel.set_title(f"{found.model}, {budgets}{'' if ran else '; expected, not run'}", fontsize=10)
    panel.grid(alpha=0.25)
    panel.legend(frameon=False)
    return drawn


def _place(found: Search, one: Candidate, ran: bool) -> tuple[float, float] | None:
    tasks = [task for task in TASKS if task in found.unpruned]
    if ran:
        changes = one.result.changes if one.result is not None else {}
        values = [changes[task].value for task in tasks if task in changes]
    else:
        values = [one.expected[task] for task in tasks if task in one.expected]
    if len(values) < len(tasks):
        return None
    return (values[0], values[1]) if len(tasks) == 2 else (float(one.name.rpartition("-")[2]), values[0])


def choices_figure(found: Search) -> Figure:
    """What each layer keeps of its attention and feed-forward: a row a layer, a panel a recipe of the front."""
    from matplotlib.figure import Figure

    rows = list(dict.fromkeys((choice.component, choice.stack, choice.layers[0]) for choice in found.choices))
    rows.sort(key=lambda row: (row[0] == "generation", row[1], row[2]))
    drawn = Figure(figsize=(1.6 + 1.7 * len(found.front), 1.2 + 0.3 * len(rows)), layout="constrained")
    for number, point in enumerate(found.front, start=1):
        _kept_panel(drawn.add_subplot(1, len(found.front), number), found, point, rows, number == 1)
    drawn.suptitle("kept of attention and feed-forward", fontsize="medium")
    return drawn


def _kept_panel(panel: Any, found: Search, point: FrontPoint, rows: list[tuple[str, str, int]], first: bool) -> None:
    import numpy as np

    values = np.ones((len(rows), 2))
    for choice in found.choices:
        if choice.name not in point.choices:
            continue
        for branch in choice.branches:
            kind = branch.split(" ")[1]
            for layer in choice.layers:
                row, column = rows.index((choice.component, choice.stack, layer)), int(kind == "feed_forward")
                values[row, column] = 0.0 if branch in choice.dropped else (choice.kept or 0.5)
    panel.imshow(values, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for row in range(len(rows)):
        for column in range(2):
            kept = values[row, column]
            panel.text(column, row, f"{kept:.2g}" if 0 < kept < 1 else "" if kept else "gone", ha="center", va="center",
                       fontsize=8, color="#ffffff" if kept > 0.6 else "#111111")  # fmt: skip
    panel.set_xticks([0, 1], ["att.", "ff."])
    labels = [f"{component[:3]}. {layer}" for component, _, layer in rows]
    panel.set_yticks(range(len(rows)), labels if first else [""] * len(rows))
    panel.tick_params(length=0)
    panel.set_title(point.name, fontsize=10)
