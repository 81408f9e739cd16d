"""Compare reports: differences in recipes and scores, and which runs are Pareto-optimal.

Pure: reports in, one document out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import hypot
from typing import Any

from umcompress.documents.base import TASKS, Document, Task
from umcompress.documents.report import SPEED_NOISE, Report, Speed, StepReport, evaluation_changes
from umcompress.documents.scores import Change, KindScore, Score, change, is_beyond_noise, printed_change
from umcompress.errors import UsageError
from umcompress.report.recipe_differences import Difference, differences, recipe_differences

Point = dict[str, float]


class ComparedRun(Document):
    """One run. `label` is its letter in the tables, `name` where it was read from.

    reasons: why its scores cannot be held against the first run's; empty when they can.
    speed_reasons: likewise for its speeds.
    changes: its result's scores against the first run's result; evaluation_changes: of every evaluation, of what is
    printed of it.
    pareto: no other comparable run is at least as good in every objective and better in one. Null when the
    run is not comparable, or is the only one.
    """

    label: str
    name: str
    model: str
    steps: tuple[StepReport, ...]
    result: int
    stopped: str | None = None
    reasons: tuple[str, ...] = ()
    speed_reasons: tuple[str, ...] = ()
    changes: dict[Task, Change] = {}
    evaluation_changes: dict[str, dict[Task, Change]] = {}
    pareto: bool | None = None


class ComparedNumber(Document):
    """One number of one evaluation, of every run's result: null where a run has none.

    number: what the evaluation calls it, null for its score. changes: against the first run; null there, and where
    the run is not comparable.
    """

    evaluation: str
    task: Task
    number: str | None = None
    values: tuple[KindScore | None, ...]
    changes: tuple[Change | None, ...]


class Comparison(Document):
    """What `umcompress compare` prints. `objectives` are those that Pareto optimality was decided on.

    numbers: of all evaluations; empty where each task has one evaluation without numbers of its own.
    """

    runs: tuple[ComparedRun, ...]
    objectives: tuple[str, ...] = ()
    numbers: tuple[ComparedNumber, ...] = ()
    differences: tuple[Difference, ...] = ()


def compare(reports: Sequence[tuple[str, Report]]) -> Comparison:
    """Compare (name, report) pairs; the first is what the others are held against."""
    if not reports:
        raise UsageError("compare", "no run", "name at least one run folder")
    first = reports[0][1]
    runs = [_run(index, name, report, first) for index, (name, report) in enumerate(reports)]
    objectives, best = _pareto(runs)
    decided = [
        run.model_copy(update={"pareto": best[run.label]}) if run.label in best else run for run in runs
    ]
    return Comparison(
        runs=tuple(decided), objectives=objectives, numbers=_numbers(decided),
        differences=recipe_differences([_recipe(report) for _, report in reports]),
    )  # fmt: skip


def _run(index: int, name: str, report: Report, first: Report) -> ComparedRun:
    result = report.result
    reasons = _reasons(report, first)
    changes: dict[Task, Change] = {}
    if index > 0 and not reasons:
        both = [task for task in TASKS if task in result.scores and task in first.result.scores]
        changes = {task: change(result.scores[task], first.result.scores[task]) for task in both}
    return ComparedRun(
        label=_letter(index),
        name=name,
        model=report.model,
        steps=report.steps,
        result=[step.name for step in report.steps].index(result.name),
        stopped=f"{report.stopped.step}: {report.stopped.reason}" if report.stopped else None,
        reasons=reasons,
        speed_reasons=_speed_reasons(report, first),
        changes=changes,
        evaluation_changes=evaluation_changes(result, first.result) if index > 0 and not reasons else {},
    )


def _numbers(runs: Sequence[ComparedRun]) -> tuple[ComparedNumber, ...]:
    """Every number that any result has, in the order of their first appearance."""
    found: list[dict[tuple[str, Task, str | None], KindScore]] = []
    for run in runs:
        mine: dict[tuple[str, Task, str | None], KindScore] = {}
        for name, scores in run.steps[run.result].evaluations.items():
            for task, score in scores.items():
                mine[name, task, None] = score
                mine |= {(name, task, number): value for number, value in score.numbers.items()}
        found.append(mine)
    keys = list(dict.fromkeys(key for mine in found for key in mine))
    scored = [task for _, task, number in keys if number is None]
    if len(scored) == len(keys) and len(set(scored)) == len(scored):
        return ()
    rows = []
    for name, task, number in keys:
        values = tuple(mine.get((name, task, number)) for mine in found)
        changes = tuple(
            _changed(value, values[0]) if place and value and values[0] and not runs[place].reasons else None
            for place, value in enumerate(values)
        )
        rows.append(ComparedNumber(evaluation=name, task=task, number=number, values=values, changes=changes))
    return tuple(rows)


def _changed(new: KindScore, old: KindScore) -> Change:
    return printed_change(new, old) if isinstance(new, Score) and isinstance(old, Score) else change(new, old)


def _letter(index: int) -> str:
    """0 -> A, 25 -> Z, 26 -> AA."""
    above, here = divmod(index, 26)
    return (_letter(above - 1) if above else "") + chr(ord("A") + here)


def _reasons(report: Report, first: Report) -> tuple[str, ...]:
    """Scores compare when the same questions were asked: the same evaluations, settings, seed and number."""
    reasons = []
    if report.seed != first.seed:
        reasons.append(f"seed {report.seed}, not {first.seed}")
    for difference in differences([first.evaluations, report.evaluations]):
        there, here = difference.values
        if difference.key.endswith(".data"):
            continue  # where the data lies says nothing of what it is
        reasons.append(f"{difference.key} {here}, not {there}")
    for task in TASKS:
        mine, theirs = report.result.scores.get(task), first.result.scores.get(task)
        if (mine is None) != (theirs is None):
            reasons.append(f"{task} was {'not ' if mine is None else ''}scored")
        elif mine is not None and theirs is not None and _counts(mine) != _counts(theirs):
            reasons.append(f"{task} was scored on {mine.n} items, not {theirs.n}, or on other kinds")
    return tuple(reasons)


def _counts(score: Any) -> tuple[int, dict[str, int]]:
    return score.n, {kind: part.n for kind, part in score.by_kind.items()}


def _speed_reasons(report: Report, first: Report) -> tuple[str, ...]:
    """Speeds are ratios to a run's own baseline: they compare for one model on one machine."""
    named = [("model", "model"), ("device", "device"), ("dtype", "dtype"), ("hardware", "hardware")]
    differ = [(word, getattr(report, key), getattr(first, key)) for key, word in named]
    return tuple(f"{word} {mine}, not {theirs}" for word, mine, theirs in differ if mine != theirs)


def _recipe(report: Report) -> dict[str, Any]:
    return {key: value for key, value in (report.recipe or {}).items() if key != "output"}


def _pareto(runs: Sequence[ComparedRun]) -> tuple[tuple[str, ...], dict[str, bool]]:
    """Objectives known for every comparable run, and for each such run whether no other beats it."""
    comparable = [run for run in runs if not run.reasons]
    if len(comparable) < 2:
        return (), {}
    steps = [run.steps[run.result] for run in comparable]
    points = [_point(step) for step in steps]
    if any(run.speed_reasons for run in comparable):
        points = [{key: value for key, value in point.items() if "speed" not in key} for point in points]
    shared = [key for key in points[0] if all(key in point for point in points)]
    points = [{key: point[key] for key in shared} for point in points]
    best = {
        run.label: not any(
            dominates(other, point, _same_within_noise(theirs, step))
            for other, theirs in zip(points, steps, strict=True)
        )
        for run, point, step in zip(comparable, points, steps, strict=True)
    }
    return tuple(shared), best


def _point(step: StepReport) -> Point:
    """What one would like to be large; sizes and losses count negatively."""
    scores = {task: step.scores[task] for task in TASKS if task in step.scores}
    point: Point = {task: -one.value if one.lower_is_better else one.value for task, one in scores.items()}
    point["parameters"] = -float(step.parameters.total)
    for task in TASKS:
        if task in step.parameters.active:
            point[f"active parameters {task}"] = -float(step.parameters.active[task])
    point |= {f"speed {task}": step.speed[task].ratio for task in TASKS if task in step.speed}
    return point


def _same_within_noise(one: StepReport, other: StepReport) -> frozenset[str]:
    """The objectives in which two results differ by no more than their scores' intervals or timings explain."""
    scores = {task for task in TASKS if task in one.scores and task in other.scores
              and not is_beyond_noise(one.scores[task], other.scores[task])}
    speeds = {f"speed {task}" for task in TASKS if task in one.speed and task in other.speed
              and not faster_beyond_noise(one.speed[task], other.speed[task])}
    return frozenset({*scores, *speeds})


def faster_beyond_noise(one: Speed, other: Speed) -> bool:
    """Whether two speeds differ by more than both timings' noise, which is taken as independent."""
    noise = max(SPEED_NOISE, hypot(one.noise or 0.0, other.noise or 0.0))
    return abs(one.ratio / other.ratio - 1) > noise


def dominates(one: Point, other: Point, same: Collection[str] = ()) -> bool:
    """`one` is at least as good as `other` everywhere and better somewhere; in those of `same` they are alike."""
    keys = [key for key in other if key not in same]
    return all(one[key] >= other[key] for key in keys) and any(one[key] > other[key] for key in keys)
