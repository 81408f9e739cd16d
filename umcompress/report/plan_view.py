"""The output of `plan` and `inspect` as tables."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from umcompress.documents.base import TASKS, Task
from umcompress.documents.previews import Inspection, PlanReport, PlanStep
from umcompress.documents.report import Size
from umcompress.plan.suggest import Starter
from umcompress.report.removed_view import ranges
from umcompress.report.table import Table, View, number_columns, short_number, size_text, text_column


def plan_view(plan: PlanReport, recipe: str | None = None, settings: Sequence[str] = ()) -> View:
    """Sizes before and after each step, then each step's sites, and what it leaves alone or cannot do.

    recipe, settings: as the command line has them, for the closing line.
    """
    named = f"{plan.recipe_name} on " if plan.recipe_name else ""
    parts: list[Table | str] = [
        f"{named}{plan.model}: planned on shapes alone, no weights read",
        _sizes(plan),
    ]
    for step in plan.steps:
        parts += [_sites(step)] if step.sites else []
        refused = by_layers((item.site, item.reason) for item in step.declined)
        parts += [f"{step.name} leaves {site} alone: {reason}" for site, reason in refused]
        parts += [f"{step.name} CANNOT be done: {step.problem}"] if step.problem else []
    parts += plan.notes
    parts += [f"apply CANNOT run this: {problem}" for problem in plan.problems]
    possible = recipe is not None and not plan.problems and not any(step.problem for step in plan.steps)
    following = [f"next: umcompress apply {shlex.join([str(recipe), *settings])}"] if possible else []
    return (*parts, *_result(plan), *_memory(plan), *following)


def _result(plan: PlanReport) -> list[str]:
    """Whether others can load it, before it is made. Which layers a measure cuts more than others is not known yet."""
    if plan.loads_with is None:
        return []
    lines = [f"result, of shapes as above: loads with {plan.loads_with}"]
    # Of experts, what to set instead is said in the reason.
    split = plan.why.removeprefix("model/ needs umcompress: ")
    lines += [f"why: {split}"] if plan.why else []
    lines += [plan.result] if plan.result else []
    alike = "whole blocks, or as much of every layer, leave a model that transformers loads"
    return [*lines, alike] if plan.why and split == plan.why else lines


def _memory(plan: PlanReport) -> list[str]:
    if plan.memory is None:
        return []
    whole, streamed = (size_text(count) for count in (plan.memory.in_memory, plan.memory.out_of_core))
    return [f"memory, activations left out: about {whole}, or {streamed} with apply --out-of-core"]


def _sizes(plan: PlanReport) -> Table:
    rows = []
    for index, step in enumerate(plan.steps):
        if index == 0:
            rows.append(("(before)", *_size(step.before, step.bytes_before, step.macs_before), ""))
        edits = "-" if step.problem else str(step.edits)
        rows.append((step.name, *_size(step.after, step.bytes_after, step.macs_after), edits))
    columns = (text_column("step"), *number_columns("params", "bytes", "act. u", "act. g", "MACs u", "MACs g", "edits"))
    return Table(
        "Sizes", columns, tuple(rows), ("act. and MACs: per token, in understanding and generation",)
    )


def _size(size: Size, stored: int, macs: Mapping[Task, int]) -> tuple[str, ...]:
    active = [short_number(size.active[task]) if task in size.active else "-" for task in TASKS]
    work = [short_number(macs[task]) if task in macs else "-" for task in TASKS]
    return (short_number(size.total), size_text(stored), *active, *work)


def _sites(step: PlanStep) -> Table:
    rows = by_layers(
        (site.site, site.component, site.unit, str(site.before), str(site.after), site.note)
        for site in step.sites
    )
    names = map(text_column, ("site", "component", "unit"))
    columns = (*names, *number_columns("before", "after"), text_column("note"))
    if not any(site.note for site in step.sites):
        return Table(f"{step.name} ({step.pass_})", columns[:-1], tuple(row[:-1] for row in rows))
    return Table(f"{step.name} ({step.pass_})", columns, rows)


def by_layers(rows: Iterable[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """Merge rows that differ only in the layer's number in the first cell: `layers.0-3,7.mlp`."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for site, *rest in rows:
        head, number, tail = re.match(r"(.*?)(?:\.(\d+)(?=\.|$)(.*))?$", site).groups()  # type: ignore[union-attr]
        layers = groups.setdefault((head, tail or "", *rest), [])
        layers += [int(number)] if number is not None else []
    return tuple(
        (f"{head}.{ranges(layers).replace(', ', ',')}{tail}" if layers else head, *rest)
        for (head, tail, *rest), layers in groups.items()
    )


def inspection_view(found: Inspection) -> View:
    """A model's parts, stacks and sites; layers that are alike share a row. Or one block's text."""
    if found.graph is not None:
        return (found.graph,)
    parts: list[Table | str] = [f"{found.model} ({found.family})", _components(found)]
    stacks = tuple((name, str(blocks)) for name, blocks in found.stacks.items())
    parts.append(Table("Stacks", (text_column("stack"), *number_columns("blocks")), stacks))
    rows = by_layers((site.path, site.kind, site.component, site.shape) for site in found.sites)
    if rows:
        columns = tuple(map(text_column, ("path", "kind", "component", "shape")))
        parts.append(Table("Sites", columns, rows))
    gaps = by_layers((gap.path, gap.kind.replace("_", "-"), gap.reason) for gap in found.missing)
    if gaps:
        parts.append(Table("Not found", (text_column("path"), text_column("what"), text_column("why")), gaps))
    if not found.stacks:
        parts.append("no stack of blocks was found: no pass has anything to act on")
    return (*parts, "", f"next: umcompress init {shlex.quote(found.model)}")


def starter_view(found: Inspection, starter: Starter, file: Path) -> View:
    """What the model has, what the recipe in `file` begins with, and what to do next."""
    rows = []
    for one in starter.suggestions:
        where = " ".join(str(one.step[key]) for key in ("component", "stack") if key in one.step)
        options = (f"{key} {value}" for key, value in one.step.items() if key not in ("pass", "component", "stack"))
        rows.append((str(one.step["pass"]), where, ", ".join(options), one.task))
    columns = (text_column("pass"), text_column("part"), text_column("options"), text_column("calibrated on"))
    notes = tuple(f"left out: {note}" for note in starter.notes)
    named = shlex.quote(str(file))
    return (
        f"{found.model} ({found.family})", _components(found), Table(f"Steps of {file}", columns, tuple(rows), notes),
        "", f"next: umcompress plan {named}; then umcompress apply {named}",
    )  # fmt: skip


def _components(found: Inspection) -> Table:
    rows: list[tuple[str, str, str]] = [
        (name, short_number(count), size_text(found.bytes.by_component.get(name, 0)))
        for name, count in found.parameters.by_component.items()
    ]
    rows.append(("all", short_number(found.parameters.total), size_text(found.bytes.total)))
    for task in TASKS:
        if task in found.parameters.active:
            stored = found.bytes.active.get(task)
            rows.append(
                (
                    f"at work in {task}",
                    short_number(found.parameters.active[task]),
                    "-" if stored is None else size_text(stored),
                )
            )
    macs = (f"{short_number(macs)} MACs per token in {task}" for task, macs in found.macs_per_token.items())
    notes = ("bytes: as loaded in float32", *macs)
    return Table("Components", (text_column("component"), *number_columns("params", "bytes")), tuple(rows), notes)
