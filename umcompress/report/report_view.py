"""The report of a run as tables: scores, what was removed, size, speed. Formats what the document holds."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from umcompress.documents.base import TASKS, Task
from umcompress.documents.report import GateResult, Report, StepReport
from umcompress.report.experts_view import training_views
from umcompress.report.removed_view import removed_tables
from umcompress.report.scores_view import scores_tables
from umcompress.report.step_tree import named_steps
from umcompress.report.table import (
    Cell,
    Table,
    View,
    number_columns,
    parameters_cell,
    seconds,
    short_number,
    size_text,
    text_column,
)

_COMPONENTS = ("understanding", "generation", "shared")
Named = Sequence[tuple[StepReport, str]]


def report_view(report: Report, run: str | None = None, timed: bool = True) -> View:
    """`run` is the folder that holds the report: it makes paths complete and gives the closing line.

    timed: with what differs each time that it is measured.
    """
    named = named_steps(report.steps)
    parts: list[Table | str] = [_title(report), *_scores(named, timed), *removed_tables(report.steps)]
    parts += [size_table(named), speed_table(named) if timed else work_table(named)]
    parts += training_views(report.steps, timed)
    parts += _lines(report, run)
    return tuple(parts)


def evaluation_view(report: Report) -> View:
    """One evaluated model; of a compressed one, what it was made from beside it."""
    measured = [(step, report.model if report.beside else step.name) for step in report.steps]
    beside = [(report.beside, f"{report.beside.name} of its run")] if report.beside else []
    parts: list[Table | str] = [_title(report), *report.notes, *_scores([*beside, *measured], True)]
    return (*parts, size_table([*beside, *measured]), speed_table(measured))


def _title(report: Report) -> str:
    recipe = f"{report.recipe_name} on " if report.recipe_name else ""
    return f"{recipe}{report.model} ({report.device}, {report.dtype}, seed {report.seed})"


def _scores(named: Named, timed: bool) -> list[Table]:
    return scores_tables([step for step, _ in named], [name for _, name in named], timed)


def size_table(named: Named) -> Table:
    rows, whole = [], named[0][0].parameters.total
    for step, name in named:
        parameters = step.parameters
        active = [short_number(parameters.active[task]) if task in parameters.active else "-" for task in TASKS]
        parts = [
            short_number(parameters.by_component[part]) if part in parameters.by_component else "-"
            for part in _COMPONENTS
        ]
        rows.append((name, parameters_cell(parameters.total, whole), size_text(step.bytes.total), *active, *parts))
    numbers = number_columns("params", "memory", "act. u", "act. g", "under.", "gener.", "shared")
    notes = ("act. u, act. g: parameters at work per token in understanding, in generation",
             "memory: bytes as the weights are held in memory; what is stored is said below")  # fmt: skip
    return Table("Size", (text_column("step"), *numbers), tuple(rows), notes)


def work_table(named: Named) -> Table:
    """What of the speed table is the same on every machine."""
    rows = [(name, *_macs(step)) for step, name in named]
    return Table("Work", (text_column("step"), *number_columns("MACs u", "MACs g")), tuple(rows), ("MACs per token",))


def _macs(step: StepReport) -> list[str]:
    return [short_number(step.macs_per_token[task]) if task in step.macs_per_token else "-" for task in TASKS]


def speed_table(named: Named) -> Table:
    rows = []
    for step, name in named:
        ratios = [speed_text(step, task) for task in TASKS]
        rows.append((name, *_macs(step), *ratios, seconds(step.seconds)))
    columns = (text_column("step"), *number_columns("MACs u", "MACs g", "speed u", "speed g", "step took"))
    notes = ["MACs per token; speed as a ratio to the baseline, above 1 is faster"]
    if any(flag.startswith("no_speed:") for step, _ in named for flag in step.flags):
        notes.append("! less work than the step that it started from, yet no faster beyond noise")
    return Table("Speed", columns, tuple(rows), tuple(notes))


def speed_text(step: StepReport, task: Task) -> str:
    speed = step.speed.get(task)
    slow = f"no_speed:{task}" in step.flags
    return "-" if speed is None else Cell(f"{speed.ratio:.2f}x{'!' if slow else ' '}", "worse" if slow else None)


def _lines(report: Report, run: str | None) -> list[str]:
    lines = [""]
    if report.stopped is not None:
        lines.append(f"stopped at {report.stopped.step}, which was undone: {report.stopped.reason}")
    gates = [(step, gate) for step in report.steps for gate in step.gates]
    lines += [_gate(step, gate) for step, gate in gates if gate.passed and gate.drop > gate.limit]
    for step in report.steps:
        lines += [f"{step.name}: {task} as in {kept}, same weights" for task, kept in step.kept.items()]
    lines += report.notes
    folder = f"{run.rstrip('/')}/" if run else ""
    pictures = [(step.name, step.samples) for step in report.steps if step.samples and not step.stopped]
    if any(step.after for step in report.steps):
        lines += [f"samples of {name}: {folder}{path}" for name, path in pictures]
    elif pictures:
        ends = dict.fromkeys([pictures[0][1], pictures[-1][1]])
        lines.append(f"samples: {' and '.join(folder + path for path in ends)}")
    lines += _checkpoint_lines(report, folder)
    if run:
        lines.append(f"next: umcompress compare {shlex.quote(run)}")
    return lines


def _gate(step: StepReport, gate: GateResult) -> str:
    ends = f" ({gate.low:.3f} to {gate.high:.3f})" if gate.low is not None and gate.high is not None else ""
    return f"{step.name}: {gate.task} got worse by {gate.drop:.3f}{ends}, not beyond noise more than {gate.limit:g}"


def _checkpoint_lines(report: Report, folder: str) -> list[str]:
    saved = report.checkpoint
    if saved is None:
        return []
    states = {True: "computes the same in a fresh process", False: "DIFFERS in a fresh process", None: ""}
    sizes = f"{size_text(saved.bytes)} stored, {size_text(report.result.bytes.total)} in memory"
    same = "" if saved.checked else states[saved.reload_equal]
    facts = [f"{saved.parameters:,} parameters", sizes, same]
    facts.append(f"loads with {saved.loads_with}{' and trust_remote_code=True' if saved.own_code else ''}")
    of = f" of {report.result.name}" if any(step.after for step in report.steps) else ""
    lines = [f"model{of}: {folder}{saved.path} ({', '.join(fact for fact in facts if fact)})"]
    return [*lines, *filter(None, (saved.checked, saved.note))]
