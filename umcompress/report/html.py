"""A report as one HTML page that needs nothing else: tables, charts, pictures before and after."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from umcompress.documents.atomic import write_text_atomic
from umcompress.documents.report import Report, StepReport
from umcompress.errors import UsageError
from umcompress.report.charts import load_chart, scores_chart, sizes_chart
from umcompress.report.report_view import evaluation_view, report_view
from umcompress.report.table import Table, View

_STYLE = """
:root { color-scheme: light dark; --u: #2f6fdb; --g: #d9622b; --all: #6b7280; --line: #8884; }
@media (prefers-color-scheme: dark) { :root { --u: #78a9ff; --g: #ff9d6b; --all: #a8b0bd; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
p.facts, p.note { opacity: .75; margin: .2rem 0; font-size: .9rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem; text-align: left; border-bottom: 1px solid var(--line); white-space: pre }
th.n, td.n { text-align: right }
.charts { display: flex; flex-wrap: wrap; gap: 1rem }
figure { margin: 0 } figcaption { font-size: .9rem; opacity: .75 }
img { max-width: 100%; image-rendering: pixelated }
svg { max-width: 100%; height: auto; font: 12px system-ui, sans-serif }
svg text { fill: currentColor } svg .grid { stroke: var(--line) }
svg .s0 { --c: var(--u) } svg .s1 { --c: var(--g) } svg .s2 { --c: var(--all) }
svg circle { fill: var(--c); stroke: var(--c) } svg .hollow { fill: Canvas }
svg .line { fill: none; stroke: var(--c); stroke-width: 2 } svg .whisker { stroke: var(--c); opacity: .6 }
svg .cell { fill: var(--g); stroke: var(--line); stroke-width: .5 }
pre { overflow-x: auto; padding: .7rem; border: 1px solid var(--line) }
"""


def page(report: Report, run: str | None = None, pictures: Mapping[str, bytes] | None = None) -> str:
    """The page.  `pictures`: the samples of steps, by the path that the report gives them."""
    title = f"{report.recipe_name} on {report.model}" if report.recipe_name else report.model
    view = report_view(report, run) if report.recipe else evaluation_view(report)
    body = [
        f"<h1>{escape(title)}</h1>", *_facts(report), _charts(report.steps), _samples(report, pictures or {}),
        *_parts(view[1:]), _recipe(report),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    text = "\n".join(part for part in body if part)
    head = f"<head>{head}<style>{_STYLE}</style></head>"
    return f'<!DOCTYPE html>\n<html lang="en">\n{head}\n<body>\n{text}\n</body>\n</html>\n'


def write_page(report: Report, folder: Path, file: Path) -> Path:
    """Write the page of a run in `folder`.  UsageError where that cannot be."""
    paths = {step.samples: folder / step.samples for step in report.steps if step.samples}
    pictures = {name: path.read_bytes() for name, path in paths.items() if path.is_file()}
    try:
        write_text_atomic(file, page(report, str(folder), pictures))
    except OSError as error:
        raise UsageError(f"write {file}", str(error.strerror), "name a file in a folder that exists") from error
    return file


def _facts(report: Report) -> list[str]:
    """What was run, on what, when."""
    versions = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    machine = [report.hardware, report.device, report.dtype, f"seed {report.seed}", report.created]
    lines = [", ".join(fact for fact in machine if fact), versions]
    if report.commit:
        lines.append(f"commit {report.commit}")
    if report.command:
        lines.append(" ".join(report.command))
    return [f'<p class="facts">{escape(line)}</p>' for line in lines if line]


def _charts(steps: Sequence[StepReport]) -> str:
    """Scores always; sizes where a step could change them; the experts of the last step that has any."""
    charts = [("Scores, with 95 % intervals", scores_chart(steps))]
    if len(steps) > 1:
        charts.append(("Parameters, as a share of the baseline's", sizes_chart(steps)))
    loads = [step.experts for step in steps if step.experts is not None and not step.stopped]
    if loads:
        charts.append(("Share of the tokens that each expert works for", load_chart(loads[-1])))
    drawn = [f"<figure>{chart}<figcaption>{escape(name)}</figcaption></figure>" for name, chart in charts if chart]
    return f'<div class="charts">{"".join(drawn)}</div>' if drawn else ""


def _samples(report: Report, pictures: Mapping[str, bytes]) -> str:
    """Pictures of the baseline and of the result, in the page itself."""
    ends = [report.baseline] if report.result is report.baseline else [report.baseline, report.result]
    shown = [(step.name, pictures[step.samples]) for step in ends if step.samples and step.samples in pictures]
    figures = [
        f'<figure><img alt="samples after {escape(name)}" src="data:image/png;base64,'
        f'{base64.b64encode(content).decode("ascii")}"><figcaption>{escape(name)}</figcaption></figure>'
        for name, content in shown
    ]
    return f'<h2>Samples</h2>\n<div class="charts">{"".join(figures)}</div>' if figures else ""


def _parts(view: View) -> list[str]:
    return [_table(part) if isinstance(part, Table) else f"<p>{escape(part)}</p>" if part else "" for part in view]


def _table(table: Table) -> str:
    right = [' class="n"' if column.right else "" for column in table.columns]
    heads = "".join(f"<th{mark}>{escape(c.name)}</th>" for c, mark in zip(table.columns, right, strict=True))
    rows = [
        "".join(f"<td{mark}>{escape(cell)}</td>" for cell, mark in zip(row, right, strict=True)) for row in table.rows
    ]
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    title = f"<h2>{escape(table.title)}</h2>\n" if table.title else ""
    inside = f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    return f'{title}<div class="scroll"><table>\n{inside}\n</table></div>{notes}'


def _recipe(report: Report) -> str:
    if report.recipe is None:
        return ""
    text = json.dumps(report.recipe, indent=1, ensure_ascii=False)
    return f"<details><summary>Recipe</summary><pre>{escape(text)}</pre></details>"
