"""The report of a run as one HTML page: charts by step and layer, pictures of every step, answers that were lost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from umcompress.documents.report import Report, StepReport
from umcompress.report.charts import layer_charts, load_chart, score_charts, size_charts
from umcompress.report.lost_answers import LostAnswers, lost_answers
from umcompress.report.pages import inlined, markup, rendered, write_file
from umcompress.report.report_view import evaluation_view, report_view
from umcompress.report.step_tree import named_steps

Charts = list[tuple[str, str]]


def page(
    report: Report, run: str | None = None, pictures: Mapping[str, bytes] | None = None,
    lost: Sequence[LostAnswers] = (),
) -> str:  # fmt: skip
    """The page.  `pictures`: the samples of steps, by the path that the report gives them."""
    view = report_view(report, run) if report.recipe else evaluation_view(report)
    steps = [step for step, _ in named_steps(report.steps)]
    known = pictures or {}
    shown = [(step, known[step.samples]) for step in steps if step.samples and step.samples in known]
    return rendered(
        "report.html", title=_title(report), facts=_facts(report), scores=_drawn(score_charts(report.steps)),
        sizes=_drawn(size_charts(report.steps)) if len(steps) > 1 else [], layers=_drawn(layer_charts(report.steps)),
        pictures=[(_named(report, step), inlined(content)) for step, content in shown], wrong=lost,
        loads=_drawn(_loads(report.steps)), parts=view[1:], folded=_folded(report),
    )  # fmt: skip


def write_page(report: Report, folder: Path, file: Path) -> Path:
    """Write the page of a run in `folder`.  UsageError where that cannot be."""
    paths = {step.samples: folder / step.samples for step in report.steps if step.samples}
    pictures = {name: path.read_bytes() for name, path in paths.items() if path.is_file()}
    return write_file(file, page(report, str(folder), pictures, lost_answers(report, folder)))


def _title(report: Report) -> str:
    return f"{report.recipe_name} on {report.model}" if report.recipe_name else report.model


def _named(report: Report, step: StepReport) -> str:
    """A step under its picture: undone, or written."""
    if step.stopped:
        return f"{step.name} (undone)"
    return f"{step.name} (written)" if report.checkpoint and step.name == report.result.name else step.name


def _facts(report: Report) -> list[str]:
    """What was run, on what, when."""
    machine = [report.hardware, report.device, report.dtype, f"seed {report.seed}", report.created]
    return [", ".join(fact for fact in machine if fact)]


def _drawn(charts: Charts) -> list[tuple[str, object]]:
    return [(name, markup(chart)) for name, chart in charts]


def _loads(steps: Sequence[StepReport]) -> Charts:
    """Of the last step that has experts: their load by task, and by denoising time."""
    loads = [step for step in steps if step.experts is not None and not step.stopped]
    if not loads or loads[-1].experts is None:
        return []
    experts, name = loads[-1].experts, loads[-1].name
    charts = [(f"share of the tokens that each expert works for, after {name}", load_chart(experts))]
    for place, (first, last) in enumerate(experts.times):
        charts.append((f"denoising time {first:.2f} to {last:.2f}", load_chart(experts, place)))
    return [(title, chart) for title, chart in charts if chart]


def _folded(report: Report) -> Charts:
    """Recipe and provenance."""
    told = {"versions": report.versions, "commit": report.commit, "command": " ".join(report.command),
            "fingerprint": report.fingerprint, "evaluations": report.evaluations, **report.provenance}  # fmt: skip
    found = [("Provenance", json.dumps({k: v for k, v in told.items() if v}, indent=1, ensure_ascii=False))]
    if report.recipe is not None:
        found.insert(0, ("Recipe", json.dumps(report.recipe, indent=1, ensure_ascii=False)))
    return found
