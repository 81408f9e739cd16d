"""Charts as inline SVG: scores and sizes over the steps, the load of experts.  Colours come from the page's style."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from math import floor, log10

from umcompress.documents.base import TASKS, Task
from umcompress.documents.expert_load import ExpertLoad, Experts
from umcompress.documents.report import StepReport
from umcompress.report.step_tree import parents

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 14, 64
CELL, MOST_CELLS = 12, 48


@dataclass(frozen=True)
class Point:
    """A value over a step, with its interval where it has one."""

    step: int
    value: float
    low: float
    high: float
    undone: bool = False


@dataclass(frozen=True)
class Line:
    """A series; `style` is its class in the page's style; `parents` has the step that each step started from."""

    name: str
    style: str
    points: tuple[Point, ...]
    parents: tuple[int, ...]


def scores_chart(steps: Sequence[StepReport]) -> str:
    """Scores with their 95 % intervals; empty where nothing is scored."""
    lines, above = [], parents(steps)
    for number, task in enumerate(TASKS):
        scored = [(index, step) for index, step in enumerate(steps) if task in step.scores]
        points = tuple(
            Point(index, (s := step.scores[task]).value, s.low, s.high, step.stopped) for index, step in scored
        )
        lines.append(Line(task, f"s{number}", points, above))
    return _chart("Scores after each step", lines, [step.name for step in steps])


def sizes_chart(steps: Sequence[StepReport]) -> str:
    """Parameters as a share of the baseline's: in all, and at work in each task."""

    def line(name: str, style: str, of: Callable[[StepReport], int | None]) -> Line:
        whole = of(steps[0])
        found = [(index, step, of(step)) for index, step in enumerate(steps)]
        points = [
            Point(index, count / whole, count / whole, count / whole, step.stopped)
            for index, step, count in found if whole and count is not None
        ]
        return Line(name, style, tuple(points), parents(steps))

    lines = [line("all parameters", "s2", lambda step: step.parameters.total)]
    for number, task in enumerate(TASKS):
        lines.append(line(f"at work in {task}", f"s{number}", partial(_active, task)))
    return _chart("Parameters, as a share of the baseline's", lines, [step.name for step in steps], low=0.0)


def _chart(title: str, lines: Sequence[Line], names: Sequence[str], low: float | None = None) -> str:
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    bottom = min(point.low for point in points) if low is None else low
    ticks = axis(bottom, max(point.high for point in points))
    step = (WIDTH - LEFT - RIGHT) / max(1, len(names))

    def x(index: float) -> float:
        return LEFT + step * (index + 0.5)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (ticks[-1] - value) / (ticks[-1] - ticks[0])

    parts = [_text(LEFT - 6, y(tick) + 4, f"{tick:g}", "end") for tick in ticks]
    parts += [f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>' for tick in ticks]
    for index, name in enumerate(names):
        short = name if len(name) * 6.5 < step else name[: max(4, int(step / 6.5) - 1)] + "…"
        parts.append(f"<g><title>{escape(name)}</title>{_text(x(index), HEIGHT - BOTTOM + 18, short, 'middle')}</g>")
    for number, line in enumerate(lines):
        parts += _series(line, partial(_shifted, x, (number - 1) * 4), y)
        place = LEFT + number * 190
        parts.append(f'<circle class="{line.style}" cx="{place + 5}" cy="{HEIGHT - 16}" r="5"/>')
        parts.append(_text(place + 15, HEIGHT - 12, line.name, "start"))
    return _svg(WIDTH, HEIGHT, title, parts)


def _series(line: Line, x: Callable[[float], float], y: Callable[[float], float]) -> list[str]:
    """Lines from each step's parent to it, and a dot with its interval for each; a hollow one was undone."""
    parts, places = [], {point.step: point for point in line.points}
    for point in line.points:
        place = f"{x(point.step):.1f}"
        before = places.get(line.parents[point.step])
        if before is not None and not point.undone:
            path = f"M{x(before.step):.1f} {y(before.value):.1f}L{place} {y(point.value):.1f}"
            parts.append(f'<path class="line {line.style}" d="{path}"/>')
        if point.low < point.high:
            parts.append(f'<path class="whisker {line.style}" d="M{place} {y(point.low):.1f}V{y(point.high):.1f}"/>')
        hollow = " hollow" if point.undone else ""
        parts.append(
            f'<circle class="{line.style}{hollow}" cx="{place}" cy="{y(point.value):.1f}" r="4">'
            f"<title>{escape(line.name)}: {point.value:.3f} ({point.low:.3f} to {point.high:.3f})</title></circle>"
        )
    return parts


def _active(task: Task, step: StepReport) -> int | None:
    return step.parameters.active.get(task)


def _shifted(x: Callable[[float], float], shift: float, index: float) -> float:
    """Shift the points of each series sideways, so that equal values do not hide each other."""
    return x(index) + shift


def axis(low: float, high: float) -> list[float]:
    """Four to nine round numbers from at most `low` to at least `high`."""
    span = max(high - low, 1e-9, abs(high) * 1e-6)
    size = 10.0 ** floor(log10(span))
    pitch = next(size * part for part in (0.1, 0.2, 0.5, 1.0, 2.0) if span / (size * part) <= 7)
    first = floor(low / pitch + 1e-9)
    ticks = [first * pitch]
    while ticks[-1] < high - 1e-9 * span or len(ticks) < 4:
        ticks.append((first + len(ticks)) * pitch)
    return [round(tick, 12) for tick in ticks]


def load_chart(experts: Experts) -> str:
    """The load of experts: a panel for each task, a row for each layer, a cell for each expert."""
    tasks = [task for task in TASKS if any(task in site.by_task for site in experts.sites)]
    panels, width = [], 0.0
    for task in tasks:
        rows = [(_layer(site), site.by_task[task]) for site in experts.sites if task in site.by_task]
        parts = [_text(LEFT, 12, task, "start")]
        for row, (name, shares) in enumerate(rows):
            each = min(CELL, CELL * MOST_CELLS / len(shares))
            parts.append(_text(LEFT - 6, 30 + row * CELL, name, "end"))
            parts += [
                f'<rect class="cell" x="{LEFT + place * each:.1f}" y="{20 + row * CELL}" width="{each:.1f}" '
                f'height="{CELL}" fill-opacity="{share:.3f}"><title>expert {place}: {share:.1%}</title></rect>'
                for place, share in enumerate(shares)
            ]
            width = max(width, LEFT + len(shares) * each)
        panels.append((parts, 28 + len(rows) * CELL))
    height, drawn = 0, []
    for parts, tall in panels:
        drawn.append(f'<g transform="translate(0 {height})">{"".join(parts)}</g>')
        height += tall
    return _svg(int(width) + RIGHT, height, "Load of experts", drawn) if drawn else ""


def _layer(site: ExpertLoad) -> str:
    return f"{site.index} {site.component[:5]}."


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{escape(title)}</title>{"".join(parts)}</svg>'
    )
