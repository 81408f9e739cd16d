"""`umcompress evaluate`: score a model as it is."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from umcompress import processes
from umcompress.documents.base import Task
from umcompress.documents.report import Report, write_report
from umcompress.documents.scores import Score, headline
from umcompress.extend.evaluation_options import chosen
from umcompress.extend.users_code import call
from umcompress.progress import say
from umcompress.run.folder import make_folder
from umcompress.run.provenance import _report


def evaluate(
    model: str,
    evaluations: Sequence[str],
    *,
    seed: int = 0,
    limit: int | None = None,
    output: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> Report:
    """Score a model as it is: one step, the baseline.

    Of several processes each takes a part of the questions; the first reports.
    """
    wanted = chosen(evaluations, seed, limit)
    from umcompress.run.reference import require_reference, scored

    for evaluation in wanted:
        call(evaluation, "check")
        require_reference(evaluation)
    if output:
        make_folder(Path(output), f"the output folder {output}")
    device = processes.start(device)
    from umcompress.documents.report import StepReport, step_report
    from umcompress.models.measure import own_speed, weigh
    from umcompress.models.source import open_source

    source = open_source(model, dtype, device, trust_remote_code=trust_remote_code)
    if processes.rank() == 0:
        say(f"umcompress evaluate {model}: {', '.join(evaluations)}, seed {seed}")
    loaded = source.load()
    runner = source.runner(loaded)
    scores: dict[str, dict[Task, Score]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(output or processes.from_first(temporary))
        for evaluation in wanted:
            scores[evaluation.name] = scored(evaluation, runner, out / evaluation.name, say, source)
    weight = weigh(loaded, source.family, runner)
    step = StepReport(
        name="baseline", scores=headline(scores), evaluations=scores, parameters=weight.parameters, bytes=weight.bytes,
        macs_per_token=weight.macs_per_token, speed=own_speed(runner),
    )
    report = _report(model, [step_report(step)], source, wanted, seed)
    if output and processes.rank() == 0:
        write_report(report, Path(output))
    return report
