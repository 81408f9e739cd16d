"""The report of a run as tables: scores, size, speed, kinds. Formats what the document holds."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from umcompress.documents.base import TASKS, Task
from umcompress.documents.report import Report, StepReport
from umcompress.documents.scores import Change, KindScore, Score
from umcompress.report.benchmarks_view import benchmarks_tables, left_out, partial_notes
from umcompress.report.experts_view import training_views
from umcompress.report.table import Table, View, number_columns, seconds, short_number, text_column

_MOST_COLUMNS = 7
_COMPONENTS = ("understanding", "generation", "shared")


def report_view(report: Report, run: str | None = None, timed: bool = True) -> View:
    """`run` is the folder that holds the report: it makes paths complete and gives the closing line.

    timed: with what differs each time that it is measured.
    """
    parts: list[Table | str] = [_title(report), scores_table(report.steps), *_kind_tables(report.steps)]
    parts += benchmarks_tables(report.steps, timed)
    work = speed_table(report.steps) if timed else work_table(report.steps)
    parts += [size_table(report.steps), work, *training_views(report.steps, timed)]
    parts += _lines(report, run)
    return tuple(parts)


def evaluation_view(report: Report) -> View:
    """One evaluated model."""
    parts: list[Table | str] = [_title(report), scores_table(report.steps), *_kind_tables(report.steps)]
    return (*parts, *benchmarks_tables(report.steps), size_table(report.steps), speed_table(report.steps))


def _title(report: Report) -> str:
    recipe = f"{report.recipe_name} on " if report.recipe_name else ""
    return f"{recipe}{report.model} ({report.device}, {report.dtype}, seed {report.seed})"


def score_text(score: KindScore | None) -> str:
    if score is None:
        return "-"
    mark = "~" if isinstance(score, Score) and score.partial else ""
    digits = ".3g" if isinstance(score, Score) and score.lower_is_better else ".3f"
    return f"{mark}{score.value:{digits}} ±{(score.high - score.low) / 2:{'.2g' if digits == '.3g' else digits}}"


def change_text(change: Change | None) -> str:
    """`-0.012`, paired `+0.0123 ±0.0021`; a star: beyond noise, a blank in its place keeps columns straight."""
    if change is None:
        return ""
    text = f"{change.value:+.3g} ±{(change.high - change.low) / 2:.2g}" if change.paired else f"{change.value:+.3f}"
    return f"{text}{'*' if change.beyond_noise else ' '}"


def loss_notes(steps: Sequence[StepReport]) -> list[str]:
    """What has to be said where a score is a loss: which way is better, what the interval of a change is."""
    scores = [(task, step.scores[task]) for step in steps for task in TASKS if task in step.scores]
    tasks = dict.fromkeys(task for task, score in scores if score.lower_is_better)
    paired = any(change.paired for step in steps for change in step.changes.values())
    return [f"lower is better: {', '.join(tasks)}"] * bool(tasks) + ["± of a change: paired over the items"] * paired


def step_name(step: StepReport) -> str:
    return f"{step.name} (undone)" if step.stopped else step.name


def scores_table(steps: tuple[StepReport, ...]) -> Table:
    rows = []
    for step in steps:
        cells = [(score_text(step.scores.get(task)), change_text(step.changes.get(task))) for task in TASKS]
        rows.append((step_name(step), *(cell for pair in cells for cell in pair)))
    levels = [steps[0].scores[task].chance if task in steps[0].scores else None for task in TASKS]
    if any(level is not None for level in levels):
        chance = ["" if level is None else f"{level:.3f}       " for level in levels]
        rows.append(("chance", chance[0], "", chance[1], ""))
    columns = (text_column("step"), *number_columns("understanding", "change", "generation", "change"))
    notes = ["± half of the 95 % interval; change from the baseline, * beyond noise (95 %)"]
    notes += loss_notes(steps)
    notes += dict.fromkeys(note for step in steps for note in partial_notes(step))
    notes += [f"{step.name} starts from {step.after}" for step in steps if step.after]
    return Table("Scores", columns, tuple(rows), tuple(notes))


def size_table(steps: tuple[StepReport, ...]) -> Table:
    rows = []
    for step in steps:
        parameters = step.parameters
        active = [short_number(parameters.active[task]) if task in parameters.active else "-" for task in TASKS]
        parts = [
            short_number(parameters.by_component[name]) if name in parameters.by_component else "-"
            for name in _COMPONENTS
        ]
        total = (short_number(parameters.total), f"{short_number(step.bytes.total)}B")
        rows.append((step_name(step), *total, *active, *parts))
    numbers = number_columns("params", "bytes", "act. u", "act. g", "under.", "gener.", "shared")
    columns = (text_column("step"), *numbers)
    notes = ("act. u, act. g: parameters at work per token in understanding, in generation",)
    return Table("Size", columns, tuple(rows), notes)


def work_table(steps: tuple[StepReport, ...]) -> Table:
    """What of the speed table is the same on every machine."""
    rows = [(step_name(step), *_macs(step)) for step in steps]
    return Table("Work", (text_column("step"), *number_columns("MACs u", "MACs g")), tuple(rows), ("MACs per token",))


def _macs(step: StepReport) -> list[str]:
    return [short_number(step.macs_per_token[task]) if task in step.macs_per_token else "-" for task in TASKS]


def speed_table(steps: tuple[StepReport, ...]) -> Table:
    rows = []
    for step in steps:
        ratios = [speed_text(step, task) for task in TASKS]
        rows.append((step_name(step), *_macs(step), *ratios, seconds(step.seconds)))
    columns = (text_column("step"), *number_columns("MACs u", "MACs g", "speed u", "speed g", "step took"))
    notes = ["MACs per token; speed as a ratio to the baseline, above 1 is faster"]
    if any(flag.startswith("no_speed:") for step in steps for flag in step.flags):
        notes.append("! less work than in the row above, yet no faster beyond noise")
    return Table("Speed", columns, tuple(rows), tuple(notes))


def speed_text(step: StepReport, task: Task) -> str:
    speed = step.speed.get(task)
    mark = "!" if f"no_speed:{task}" in step.flags else " "
    return "-" if speed is None else f"{speed.ratio:.2f}x{mark}"


def _kind_tables(steps: tuple[StepReport, ...]) -> list[Table]:
    return [table for task in TASKS if (table := _kind_table(steps, task)) is not None]


def _kind_table(steps: tuple[StepReport, ...], task: Task) -> Table | None:
    scored = [step for step in steps if task in step.scores and step.scores[task].by_kind]
    if not scored:
        return None
    shown = scored if len(scored) <= _MOST_COLUMNS else [scored[0], *scored[1 - _MOST_COLUMNS :]]
    first = scored[0].scores[task].by_kind
    rows = []
    for kind, part in first.items():
        found = [step.scores[task].by_kind.get(kind) for step in shown]
        chance = "" if part.chance is None else f"{part.chance:.2f}"
        rows.append((kind, *("-" if one is None else f"{one.value:.3f}" for one in found), chance))
    heads = [step.name if step.pass_ is None else step.name.partition("-")[0][:8] for step in shown]
    notes = (left_out(len(scored) - len(shown)),) if len(shown) < len(scored) else ()
    title = f"{task.capitalize()} by kind"
    return Table(title, (text_column("kind"), *number_columns(*heads, "chance")), tuple(rows), notes)


def _lines(report: Report, run: str | None) -> list[str]:
    lines = [""]
    if report.stopped is not None:
        lines.append(f"stopped at {report.stopped.step}, which was undone: {report.stopped.reason}")
    for step in report.steps:
        lines += [f"{step.name} left {item.site} alone: {item.reason}" for item in step.declined[:3]]
        if len(step.declined) > 3:
            lines.append(f"{step.name} left {len(step.declined)} sites alone; report.json lists them")
    lines += report.notes
    folder = f"{run.rstrip('/')}/" if run else ""
    pictures = [step.samples for step in report.steps if step.samples and not step.stopped]
    if pictures:
        ends = list(dict.fromkeys([pictures[0], pictures[-1]]))
        lines.append(f"samples: {' and '.join(folder + path for path in ends)}")
    lines += _checkpoint_lines(report, folder)
    if run:
        lines.append(f"next: umcompress compare {shlex.quote(run)}")
    return lines


def _checkpoint_lines(report: Report, folder: str) -> list[str]:
    saved = report.checkpoint
    if saved is None:
        return []
    states = {True: "computes the same in a fresh process", False: "DIFFERS in a fresh process", None: ""}
    facts = [f"{saved.parameters:,} parameters", f"{short_number(saved.bytes)}B", states[saved.reload_equal]]
    facts.append(f"loads with {saved.loads_with}{' and trust_remote_code=True' if saved.own_code else ''}")
    lines = [f"model: {folder}{saved.path} ({', '.join(fact for fact in facts if fact)})"]
    return [*lines, saved.note] if saved.note else lines
