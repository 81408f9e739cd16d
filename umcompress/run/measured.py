"""Measure a model as it is: its scores by every evaluation, its size, its speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from umcompress import processes
from umcompress.documents.base import Task
from umcompress.documents.report import Speed, StepReport
from umcompress.documents.scores import Score, headline
from umcompress.extend.evaluation_base import Evaluation
from umcompress.models.measure import weigh
from umcompress.models.runner import Runner
from umcompress.models.source import Source
from umcompress.run.reference import scored

if TYPE_CHECKING:
    from torch import nn


def measured(
    name: str, model: nn.Module, runner: Runner, source: Source, evaluations: Sequence[Evaluation], out: Path,
    say: Callable[[str], None], title: str, speed: Callable[[], dict[Task, Speed]], baseline: Path | None = None,
) -> StepReport:  # fmt: skip
    """A report of the model. Processes evaluate together; the first alone counts and times.

    out: a folder for what the evaluations leave; `baseline`: the one that they left of the model before the first step.
    """
    if evaluations:
        say(f"{title}: evaluating")
    scores: dict[str, dict[Task, Score]] = {}
    for evaluation in evaluations:
        before = None if baseline is None else baseline / evaluation.name
        scores[evaluation.name] = scored(evaluation, runner, out / evaluation.name, say, source, before)

    def counted() -> StepReport:
        say(f"{title}: measuring size and speed")
        weight = weigh(model, source.family, runner)
        return StepReport(
            name=name, scores=headline(scores), evaluations=scores, parameters=weight.parameters, bytes=weight.bytes,
            macs_per_token=weight.macs_per_token, speed=speed(),
        )  # fmt: skip

    return processes.by_first(counted)
