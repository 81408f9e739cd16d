"""Measure a model as it is: its size, its scores by every evaluation, its speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from umcompress import processes
from umcompress.documents.base import Task
from umcompress.documents.report import Speed, StepReport
from umcompress.documents.scores import Score, headline
from umcompress.extend.evaluation_base import Evaluation
from umcompress.models.measure import Weight, weigh
from umcompress.models.runner import Runner
from umcompress.models.source import Source
from umcompress.run.kept import Above, Origins, narrowed
from umcompress.run.reference import scored

if TYPE_CHECKING:
    from torch import nn

TimeTasks = Callable[[Sequence[Task]], dict[Task, Speed]]


def measured(
    name: str, model: nn.Module, runner: Runner, source: Source, evaluations: Sequence[Evaluation], out: Path,
    say: Callable[[str], None], title: str, speed: TimeTasks | None,
    baseline: Path | None = None, above: Above | None = None, origins: Origins | None = None,
) -> tuple[StepReport, Weight]:  # fmt: skip
    """A report of the model. Processes evaluate together; the first alone counts and times.

    out: a folder for what the evaluations leave; `baseline`: the one that they left of the model before the first step.
    above: the step that this one starts from; with `origins` it says what need not be measured again.
    speed: times tasks; None: nothing is timed.
    """
    weight = processes.by_first(lambda: weigh(model, source.family, runner))
    kept = {} if above is None or origins is None else above.kept(weight.reads, origins)
    if above is not None:
        # What was not measured there is no more than what nobody knows.
        kept = {task: name for task, name in kept.items() if task in above.report.scores or task in above.report.speed}
    if kept:
        say(f"{title}: {' and '.join(kept)} as measured before, no weight of it has changed")
    if evaluations:
        say(f"{title}: evaluating")
    scores: dict[str, dict[Task, Score]] = {}
    for evaluation in evaluations:
        before = None if baseline is None else baseline / evaluation.name
        known = {} if above is None else above.scores(evaluation, kept)
        if above is not None and known and known.keys() == above.report.evaluations[evaluation.name].keys():
            scores[evaluation.name] = known
            continue
        made = scored(evaluation, narrowed(runner, known), out / evaluation.name, say, source, before)
        scores[evaluation.name] = {**known, **made}
    report = StepReport(
        name=name, scores=headline(scores), evaluations=scores, parameters=weight.parameters, bytes=weight.bytes,
        macs_per_token=weight.macs_per_token, kept=kept,
    )  # fmt: skip
    if speed is not None:
        timed: Mapping[Task, Speed] = {} if above is None else above.report.speed
        known_speed = {task: timed[task] for task in runner.tasks if task in kept and task in timed}
        say(f"{title}: measuring speed")
        rest = [task for task in runner.tasks if task not in known_speed]
        found = processes.by_first(lambda: speed(rest) if rest else {})
        report = report.model_copy(update={"speed": {**known_speed, **found}})
    return report, weight
