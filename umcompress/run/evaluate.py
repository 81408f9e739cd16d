"""`umcompress evaluate`: score a model as it is."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from umcompress import processes
from umcompress.documents.report import Report, write_report
from umcompress.extend.evaluation_options import chosen
from umcompress.extend.users_code import call
from umcompress.progress import say
from umcompress.run.folder import make_folder
from umcompress.run.provenance import _report


def evaluate(
    model: str,
    evaluations: Sequence[str] | None = None,
    *,
    seed: int | None = None,
    limit: int | None = None,
    output: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> Report:
    """Score a model as it is: one step, the baseline.

    evaluations, seed: of a model that a run wrote, that run's, so that its baseline can stand beside the scores; of any
    other, `scenes` and 0.
    Of several processes each takes a part of the questions; the first reports.
    """
    from umcompress.run.origin import origin

    made = origin(model)
    own = made.evaluations(seed, limit) if made is not None and not evaluations else []
    if seed is None:
        seed = made.report.seed if made is not None else 0
    wanted = own or chosen(evaluations or ["scenes"], seed, limit)
    from umcompress.run.reference import require_reference

    for evaluation in wanted:
        call(evaluation, "check")
        require_reference(evaluation)
    if output:
        make_folder(Path(output), f"the output folder {output}")
    device = processes.start(device)
    from umcompress.documents.report import step_report
    from umcompress.models.source import open_source
    from umcompress.models.stopwatch import own_speed
    from umcompress.run.measured import measured

    source = open_source(model, dtype, device, trust_remote_code=trust_remote_code)
    if processes.rank() == 0:
        say(f"umcompress evaluate {model}: {', '.join(one.name for one in wanted)}, seed {seed}")
    loaded = source.load()
    runner = source.runner(loaded)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(output or processes.from_first(temporary))
        step, _ = measured(
            "baseline", loaded, runner, source, wanted, out, say, "baseline", lambda tasks: own_speed(runner, tasks)
        )
    report = _report(model, [step_report(step)], source, wanted, seed)
    if made is not None:
        measured_step, beside = made.beside(report.steps[0], report.evaluations, seed)
        other = () if beside else ("the run scored other items: its baseline is not shown beside",)
        report = report.model_copy(update={
            "steps": (measured_step,), "beside": beside, "notes": (made.in_words(), *other, *report.notes),
        })  # fmt: skip
    if output and processes.rank() == 0:
        write_report(report, Path(output))
    return report
