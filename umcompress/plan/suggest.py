"""Suggest a first recipe for a model: passes that usually work, for the parts that it has.

Pure: what `inspect` found in, YAML out. Understanding is cut, generation is split into experts (the study's advice),
a model of one part keeps widths that an ordinary configuration can say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from umcompress.documents.base import Task
from umcompress.documents.previews import Inspection, SiteInfo
from umcompress.recipe.yaml_writer import yaml_text

_CHANNELS = re.compile(r"(\d+) channels")
# Widths that hardware likes, where a model is large enough to care.
_ALIGNED, _WIDE = 64, 512
_EXPERTS = 16
_ORDER = ("shared", "understanding", "generation")


@dataclass(frozen=True)
class Suggestion:
    """One step. why: a comment above it."""

    why: str
    step: Mapping[str, Any]
    task: Task


@dataclass(frozen=True)
class Starter:
    """What goes into the recipe. notes: parts of the model that no step touches, and why."""

    suggestions: tuple[Suggestion, ...]
    notes: tuple[str, ...] = field(default=())


def suggest(found: Inspection, tasks: Sequence[Task], refusals: Mapping[Task, str] | None = None) -> Starter:
    """Steps for each stack and component that a calibration of one of `tasks` reaches.

    refusals: why there is none of another task.
    """
    suggestions: list[Suggestion] = []
    notes: list[str] = []
    main = next(iter(found.stacks), None)
    for stack in found.stacks:
        blocks = [site for site in found.sites if site.stack == stack and site.kind == "block"]
        for component in sorted({site.component for site in blocks}, key=_ORDER.index):
            task: Task = "generation" if component == "generation" else "understanding"
            if task not in tasks:
                why = (refusals or {}).get(task, "no evaluation here has any")
                notes.append(f"{component} in {stack}: no calibration data for {task}; {why}")
                continue
            own = [site for site in found.sites if site.stack == stack and site.component == component]
            place = {"component": component} | ({} if stack == main else {"stack": stack})
            made = list(_steps(own, place, task, alone=len(found.parameters.by_component) == 1))
            if not made:
                notes.append(f"{component} in {stack}: neither blocks to spare nor feed-forwards that were found")
            suggestions += made
    return Starter(tuple(suggestions), tuple(notes))


def _steps(sites: Sequence[SiteInfo], place: Mapping[str, str], task: Task, alone: bool) -> list[Suggestion]:
    blocks = [site for site in sites if site.kind == "block"]
    widths = {int(match[1]) for site in sites if (match := _CHANNELS.match(site.shape))}
    steps: list[Suggestion] = []
    if task == "generation":
        if widths and all(width % _EXPERTS == 0 for width in widths):
            split = {"pass": "moe_split", **place, "experts": _EXPERTS, "active": _EXPERTS // 2}
            steps.append(Suggestion("Generation breaks early: experts, half at work, instead of a cut.", split, task))
        return steps
    if len(blocks) >= 4:
        what = "An eighth of the layers" if alone else "A quarter of the attentions"
        unit = {"unit": "block", "keep_ratio": 0.875} if alone else {"unit": "attention", "keep_ratio": 0.75}
        drop = {"pass": "layer_drop", **place, **unit}
        steps.append(Suggestion(f"{what}: those that change the stream least.", drop, task))
    if widths:
        prune: dict[str, Any] = {"pass": "channel_prune", **place, "keep_ratio": 0.75, "repair": "least_squares"}
        if all(width % _ALIGNED == 0 and width >= _WIDE for width in widths):
            prune["multiple_of"] = _ALIGNED
        why = "A quarter of the channels; the others are refitted to stand in for them."
        if alone and len(widths) == 1:
            prune["uniform"] = True
        elif alone:
            # A dense layer beside mixtures with a shared expert, say: no ratio makes these alike.
            why += f" Layers are {' and '.join(map(str, sorted(widths)))} wide from the start, so none is made alike."
        steps.append(Suggestion(why, prune, task))
    return steps


def recipe_text(
    model: str, starter: Starter, evaluations: Mapping[str, Mapping[str, Any]], sources: Mapping[Task, str],
    head: Mapping[str, Any] | None = None,
) -> str:
    """The YAML of a recipe.

    evaluations: name -> options. sources: the evaluation that calibrates a task. head: further keys at the top.
    """
    first = next(iter(evaluations), None)
    default: Task = starter.suggestions[0].task if starter.suggestions else "understanding"

    def calibration(task: Task) -> dict[str, Any]:
        named = {} if sources[task] == first else {"source": sources[task]}
        return {"task": task, "samples": 64, **named}

    asked: list[Any] = [{name: dict(options)} if options else name for name, options in evaluations.items()]
    top = {"model": model, **(head or {}), "calibration": calibration(default), "evaluate": asked}
    text = f"# A first recipe for {model}: change what you like, `umcompress passes` lists what else there is.\n"
    borrowed = sorted({source for source in sources.values() if source not in evaluations})
    text += "".join(
        f"# Calibrated on {name}; better on questions like yours: calibration: {{data: FILE}} in place of source.\n"
        for name in borrowed
    )
    text += yaml_text(top) + "steps:\n"
    for one in starter.suggestions:
        step = dict(one.step) | ({} if one.task == default else {"calibration": calibration(one.task)})
        text += f"  # {one.why}\n" + yaml_text({"steps": [step]}).removeprefix("steps:\n")
    return text + "".join(f"  # Left out: {note}.\n" for note in starter.notes)
