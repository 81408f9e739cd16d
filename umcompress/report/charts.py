"""Charts as inline SVG: scores, sizes and speeds by step, what is left by layer, the load of experts.

Colours come from the page's style.  A chart has a row for each step, so that names are read and phones have room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10

from umcompress.documents.base import TASKS, Task
from umcompress.documents.expert_load import ExpertLoad, Experts
from umcompress.documents.report import SPEED_NOISE, StepReport
from umcompress.documents.scores import printed
from umcompress.report.removed_view import split_site
from umcompress.report.scores_view import Entry, entries, entry_name, score_of
from umcompress.report.step_tree import named_steps

WIDTH, ROW, NAMES, RIGHT = 460, 22, 170, 14
BAR, BARS_HIGH = 14, 70
CELL, MOST_CELLS, LEFT = 12, 48, 54
Chart = tuple[str, str]


@dataclass(frozen=True)
class Dot:
    """A value in the row of a step, with its interval; `ideal` is a mark beside it."""

    row: int
    value: float
    low: float
    high: float
    undone: bool = False
    ideal: float | None = None


def score_charts(steps: Sequence[StepReport]) -> list[Chart]:
    """A chart for each evaluation and task: what is printed of it, with 95 % intervals, and the baseline as a line."""
    return [(_scored_title(steps, entry), _scores(steps, entry)) for entry in entries(steps)]


def _scored_title(steps: Sequence[StepReport], entry: Entry) -> str:
    first = next(score for step in steps if (score := score_of(step, entry)) is not None)
    what = first.printed or ("loss" if first.lower_is_better else "score")
    lower = ", lower is better" if first.lower_is_better or first.printed == "perplexity" else ""
    return f"{entry_name(entry)}: {what} with 95 % intervals{lower}"


def _scores(steps: Sequence[StepReport], entry: Entry) -> str:
    dots, levels = [], []
    for row, (step, _) in enumerate(named_steps(steps)):
        if (score := score_of(step, entry)) is None:
            continue
        shown = printed(score)
        dots.append(Dot(row, shown.value, shown.low, shown.high, step.stopped))
        if row == 0:
            levels = [shown.value, *([score.chance] if score.chance is not None and score.printed is None else [])]
    return _rows(_scored_title(steps, entry), steps, dots, levels, f"s{TASKS.index(entry[1])}")


def size_charts(steps: Sequence[StepReport]) -> list[Chart]:
    """Parameters as a share of the baseline's; of each task, speed beside what less work alone would give."""
    charts = [("all parameters, as a share of the baseline's", _parameters(steps, None))]
    for task in TASKS:
        charts.append((f"parameters at work in {task}, as a share of the baseline's", _parameters(steps, task)))
    for task in TASKS:
        title = f"speed of {task}, as a ratio to the baseline: measured, and ideal by work"
        charts.append((title, _speeds(steps, task)))
    return [(title, chart) for title, chart in charts if chart]


def _parameters(steps: Sequence[StepReport], task: Task | None) -> str:
    sizes = [step.parameters for step, _ in named_steps(steps)]
    counts = [size.total if task is None else size.active.get(task) for size in sizes]
    if not (whole := counts[0]):
        return ""
    shares = [(row, count / whole) for row, count in enumerate(counts) if count is not None]
    dots = [Dot(row, share, share, share) for row, share in shares]
    style = "s2" if task is None else f"s{TASKS.index(task)}"
    return _rows("parameters", steps, dots, [1.0], style, low=0.0)


def _speeds(steps: Sequence[StepReport], task: Task) -> str:
    work, dots = steps[0].macs_per_token.get(task), []
    for row, (step, _) in enumerate(named_steps(steps)):
        if (speed := step.speed.get(task)) is None:
            continue
        noise = max(speed.noise or 0.0, SPEED_NOISE) if row else 0.0
        now = step.macs_per_token.get(task)
        ideal = work / now if work and now else None
        dots.append(Dot(row, speed.ratio, speed.ratio * (1 - noise), speed.ratio * (1 + noise), step.stopped, ideal))
    return _rows(f"speed of {task}", steps, dots, [1.0], f"s{TASKS.index(task)}")


def _rows(
    title: str, steps: Sequence[StepReport], dots: Sequence[Dot], levels: Sequence[float], style: str,
    low: float | None = None,
) -> str:  # fmt: skip
    """A row a step: its name, a dot with its interval; levels are lines through all rows."""
    if not dots:
        return ""
    ends = [end for dot in dots for end in (dot.low, dot.high, *([dot.ideal] if dot.ideal is not None else []))]
    ticks = axis(min([*ends, *levels]) if low is None else low, max([*ends, *levels]))
    height = ROW * len(steps)

    def x(value: float) -> float:
        return NAMES + (WIDTH - NAMES - RIGHT) * (value - ticks[0]) / (ticks[-1] - ticks[0])

    parts = [f'<path class="grid" d="M{x(tick):.1f} 4V{height + 4}"/>' for tick in ticks]
    parts += [_text(x(tick), height + 20, f"{tick:g}", "middle") for tick in ticks[:: 1 + len(ticks) // 6]]
    parts += [f'<path class="level" stroke-dasharray="4 3" d="M{x(level):.1f} 4V{height + 4}"/>' for level in levels]
    for row, (_, name) in enumerate(named_steps(steps)):
        short = name if len(name) <= 24 else f"{name[:23]}…"
        shown = _text(4, ROW * row + 19, short.replace(" ", "\N{NO-BREAK SPACE}"), "start")
        parts.append(f"<g><title>{escape(name)}</title>{shown}</g>")
    parts += [part for dot in dots for part in _dot(dot, style, x(dot.low), x(dot.value), x(dot.high))]
    for dot in dots:
        if dot.ideal is not None:
            at, y = x(dot.ideal), ROW * dot.row + 15
            told = f"<title>ideal: {dot.ideal:.3g}</title>"
            parts.append(f'<path class="ideal" d="M{at:.1f} {y - 7}V{y + 7}">{told}</path>')
    return _svg(WIDTH, height + 26, title, parts)


def _dot(dot: Dot, style: str, low: float, value: float, high: float) -> list[str]:
    y, hollow = ROW * dot.row + 15, " hollow" if dot.undone else ""
    told = f"{dot.value:.4g} ({dot.low:.4g} to {dot.high:.4g})" if dot.low < dot.high else f"{dot.value:.4g}"
    whisker = f'<path class="whisker {style}" d="M{low:.1f} {y}H{high:.1f}"/>'
    circle = f'<circle class="{style}{hollow}" cx="{value:.1f}" cy="{y}" r="4"><title>{told}</title></circle>'
    return [*([whisker] if dot.low < dot.high else []), circle]


def layer_charts(steps: Sequence[StepReport]) -> list[Chart]:
    """For each step and kind of site, a bar a layer: similarity of blocks and branches, else the share that is left."""
    charts = []
    for step in steps:
        groups: dict[str, list[tuple[int, float, bool]]] = {}
        for site in step.sites:
            head, number, tail = split_site(site.site)
            value = site.score if site.score is not None else site.after / site.before if site.before else None
            if number is not None and value is not None:
                kind = "similarity" if site.score is not None else site.unit
                where = " ".join(part for part in (f"{head}.*{tail}", site.component, kind) if part)
                groups.setdefault(where, []).append((number, value, site.after == 0))
        for where, bars in groups.items():
            charts.append((f"{step.name}: {where}", _bars(where, bars, where.endswith("similarity"))))
    return charts


def _bars(title: str, bars: Sequence[tuple[int, float, bool]], similar: bool) -> str:
    """(layer, value, dropped): a bar from zero to one; of similarities near to one, from a round value below them."""
    least = min(value for _, value, _ in bars)
    base = floor(least * 10 - 0.5) / 10 if similar and least >= 0.5 else 0.0
    last = max(number for number, _, _ in bars)
    width = LEFT + BAR * (last + 1) + RIGHT

    def y(value: float) -> float:
        return 8 + BARS_HIGH * (1 - (max(base, min(1.0, value)) - base) / (1 - base))

    parts = [f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{width - RIGHT}"/>' for tick in (base, 1.0)]
    parts += [_text(LEFT - 6, y(tick) + 4, f"{tick:g}", "end") for tick in (base, 1.0)]
    for number, value, dropped in bars:
        left, top, hollow = LEFT + BAR * number + 2, y(value), " hollow" if dropped else ""
        parts.append(
            f'<rect class="bar s2{hollow}" x="{left}" y="{top:.1f}" width="{BAR - 4}" '
            f'height="{max(0.0, y(base) - top):.1f}"><title>layer {number}: {value:.4g}'
            f"{', dropped' if dropped else ''}</title></rect>"
        )
    for number in range(0, last + 1, 1 if last < 12 else 4):
        parts.append(_text(LEFT + BAR * number + BAR / 2, BARS_HIGH + 24, str(number), "middle"))
    return _svg(width, BARS_HIGH + 30, title, parts)


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


def load_chart(experts: Experts, time: int | None = None) -> str:
    """The load of experts: a panel for each task, a row for each layer, a cell for each expert.

    time: of generation, in this bin of denoising time.
    """
    tasks: list[Task] = [task for task in TASKS if any(task in site.by_task for site in experts.sites)]
    found: list[tuple[str, list[tuple[str, tuple[float, ...]]]]] = [
        (task, [(_layer(site), site.by_task[task]) for site in experts.sites if task in site.by_task]) for task in tasks
    ]
    if time is not None:
        timed = [site for site in experts.sites if time < len(site.by_time)]
        found = [("generation", [(_layer(site), site.by_time[time]) for site in timed])]
    height, width, drawn = 0, 0.0, []
    for name, rows in found:
        if not rows:
            continue
        parts = [_text(LEFT, 12, name, "start")]
        for row, (layer, shares) in enumerate(rows):
            each = min(CELL, CELL * MOST_CELLS / len(shares))
            parts.append(_text(LEFT - 6, 30 + row * CELL, layer, "end"))
            parts += [
                f'<rect class="cell" x="{LEFT + place * each:.1f}" y="{20 + row * CELL}" width="{each:.1f}" '
                f'height="{CELL}" fill-opacity="{share:.3f}"><title>expert {place}: {share:.1%}</title></rect>'
                for place, share in enumerate(shares)
            ]
            width = max(width, LEFT + len(shares) * each)
        drawn.append(f'<g transform="translate(0 {height})">{"".join(parts)}</g>')
        height += 28 + len(rows) * CELL
    return _svg(int(width) + RIGHT, height, "Load of experts", drawn) if drawn else ""


def _layer(site: ExpertLoad) -> str:
    return f"{site.index} {site.component[:3]}."


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="own" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{escape(title)}</title>{"".join(parts)}</svg>'
    )
