"""The load of experts as text: a strip for each feed-forward, a character for each expert."""

from __future__ import annotations

from umcompress.documents.base import TASKS
from umcompress.documents.expert_load import ExpertLoad, Experts, Shares
from umcompress.documents.report import StepReport
from umcompress.report.table import Column, Table, number_columns, short_number, text_column

LEVELS = "·▁▂▃▄▅▆▇█"
# A strip is at most this long: two of them and the layer fit 80 columns; beside the numbers, half of it.
LONGEST = 32


def strip(shares: Shares, longest: int = LONGEST) -> str:
    """A character an expert: `·` for none of the tokens, the higher the more, `█` for all of them.

    Of more than `longest` experts, neighbours share a character: their mean.
    """
    each = -(-len(shares) // longest)
    groups = [shares[start : start + each] for start in range(0, len(shares), each)]
    return "".join(_level(sum(group) / len(group)) for group in groups)


def _level(share: float) -> str:
    if share <= 0:
        return LEVELS[0]
    return LEVELS[max(1, min(8, round(share * 8)))]


def load_shift(site: ExpertLoad) -> float | None:
    """How much the load changes over denoising: half the summed change of shares from the first time bin to the last,
    over the active experts.  0: always the same experts; 1: all others."""
    if len(site.by_time) < 2:
        return None
    first, last = site.by_time[0], site.by_time[-1]
    return sum(abs(a - b) for a, b in zip(first, last, strict=True)) / 2 / site.active


def experts_tables(experts: Experts, step: str) -> list[Table]:
    """By task; then by denoising time."""
    tables = [_by_task(experts, step)]
    if any(site.by_time for site in experts.sites):
        tables.append(_by_time(experts, step))
    return tables


def training_views(steps: tuple[StepReport, ...], timed: bool = True) -> list[Table]:
    """The results of trainings, and the load of experts after the last step that has any."""
    tables = [_trainings(steps, timed)] if any(step.training for step in steps) else []
    last = next((step for step in reversed(steps) if step.experts is not None and not step.stopped), None)
    if last is not None and last.experts is not None:
        tables += experts_tables(last.experts, last.name)
    return tables


def _trainings(steps: tuple[StepReport, ...], timed: bool) -> Table:
    """A row a training and loss."""
    rows = []
    for step in steps:
        if (training := step.training) is None:
            continue
        took = f"{training.seconds_per_step:.2f}s" if timed else "-"
        facts = (step.name, str(training.steps), short_number(training.parameters), took)
        names = [name for name in training.last if name != "loss"]
        for number, name in enumerate(names):
            ends = (f"{training.first.get(name, 0.0):.4f}", f"{training.last[name]:.4f}")
            rows.append((*(facts if number == 0 else ("",) * len(facts)), name, *ends))
    first = (text_column("step"), *number_columns("steps", "learns", "a step"))
    columns = (*first, _text("loss"), *number_columns("first", "last"))
    notes = ("first and last: the mean over a tenth of the steps; losses without their weights",)
    return Table("Training", columns, tuple(rows), notes)


def _text(name: str) -> Column:
    return Column(name, right=False)


def _by_task(experts: Experts, step: str) -> Table:
    tasks = [task for task in TASKS if any(task in site.by_task for site in experts.sites)]
    longest = LONGEST if len(tasks) == 1 else LONGEST // 2
    rows = []
    for site in experts.sites:
        shares = [share for task in tasks for share in site.by_task.get(task, ())]
        ends = (f"{min(shares):.2f}", f"{max(shares):.2f}") if shares else ("-", "-")
        change = load_shift(site)
        strips = [strip(site.by_task[task], longest) if task in site.by_task else "-" for task in tasks]
        rows.append((_name(site), *strips, *ends, "-" if change is None else f"{change:.2f}"))
    columns = (_text("layer"), *map(_text, tasks), *number_columns("least", "most", "moves"))
    notes = (
        "share of the tokens that each expert works for, · none to █ all",
        "moves: share of the chosen experts that change from the first steps to the last",
    )
    return Table(f"Experts after {step}", columns, tuple(rows), notes)


def _by_time(experts: Experts, step: str) -> Table:
    """As many time bins as fit: the first and the last always."""
    width = max(min(LONGEST, len(site.by_time[0])) for site in experts.sites if site.by_time)
    places = list(range(len(experts.times)))
    if width * len(places) > 2 * LONGEST:
        places = [0, places[-1]]
    rows = [
        (_name(site), *(strip(site.by_time[place]) for place in places)) for site in experts.sites if site.by_time
    ]
    heads = [f"t {experts.times[place][0]:.2f}-{experts.times[place][1]:.2f}" for place in places]
    return Table(f"Experts by denoising time after {step}", (_text("layer"), *map(_text, heads)), tuple(rows))


def _name(site: ExpertLoad) -> str:
    return f"{site.index} {site.component[:3]}."
