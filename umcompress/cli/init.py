"""`umcompress init`: a first recipe for a model, every step of it planned before it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umcompress.documents.base import TASKS, Task
from umcompress.documents.previews import Inspection
from umcompress.errors import PlanError, UsageError
from umcompress.extend.evaluation_base import Evaluation
from umcompress.extend.evaluation_options import bare_name, chosen
from umcompress.extend.registry import find_evaluation, find_pass
from umcompress.plan.suggest import Starter, recipe_text, suggest
from umcompress.recipe.places import seen_from, with_places

if TYPE_CHECKING:
    from umcompress.models.runner import Runner

# What calibrates where the named evaluations do not.
_BUILT_IN = "scenes"


def start(
    model: str, names: Sequence[str], output: Path, trust_remote_code: bool = False
) -> tuple[Inspection, Starter]:
    """Write a recipe for `model` with the evaluations `names`; returns what the recipe was made from.

    Raises UsageError where the file is there already, or where no evaluation can calibrate any step.
    """
    if output.exists():
        raise UsageError(f"write {output}", "it is there already", "name another file with -o")
    if not output.parent.is_dir():
        raise UsageError(f"write {output}", f"there is no folder {output.parent}", "make it first, or change -o")
    evaluations = {
        seen_from(bare_name(name), "code", output.parent): evaluation
        for name, evaluation in zip(names, chosen(names, 0, None), strict=True)
    }
    for evaluation in evaluations.values():
        evaluation.check()
    from umcompress.models.source import open_source
    from umcompress.plan.inspect import inspect_model

    source = open_source(model, trust_remote_code=trust_remote_code)
    found = inspect_model(model, None, trust_remote_code)
    runner = source.runner(source.skeleton())
    sources, refusals = _sources(model, evaluations, runner)
    starter = suggest(found, list(sources), refusals)
    if not starter.suggestions:
        what = "; ".join(starter.notes) or "no block of it has a part that passes know"
        do = f"see umcompress inspect {model}, and name evaluations whose data can calibrate"
        raise UsageError(f"a first recipe for {model}", what, do)
    head: dict[str, Any] = {"trust_remote_code": True} if trust_remote_code else {}
    model = seen_from(model, "model", output.parent)
    options = {name: _given(evaluation, output.parent) for name, evaluation in evaluations.items()}
    starter = _planned(model, starter, options, sources, head, output)
    try:
        output.write_text(recipe_text(model, starter, options, sources, head), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"write {output}", str(error.strerror), "choose another with -o") from error
    return found, starter


def _given(evaluation: Evaluation, folder: Path) -> dict[str, Any]:
    """The options that were given, as a recipe in `folder` says them."""
    plain = with_places(
        type(evaluation), evaluation.json_values(), lambda name, kind, at: seen_from(name, kind, folder)
    )
    return {key: plain[key] for key in plain if key in evaluation.model_fields_set and key != "seed"}


def _sources(
    model: str, evaluations: Mapping[str, Evaluation], runner: Runner
) -> tuple[dict[Task, str], dict[Task, str]]:
    """For each task the first evaluation that has calibration data for it; else why those that were asked have none.

    Where they have none, the built-in pictures do for models that see.

    Raises UsageError where `runner` cannot be scored by one of them: the run would end at its first evaluation.
    """
    found: dict[Task, str] = {}
    refusals: dict[Task, str] = {}
    for task in (task for task in TASKS if task in runner.tasks):
        for name, evaluation in evaluations.items():
            if task not in evaluation.tasks:
                continue
            try:
                items = evaluation.calibration_items(task, 1, 0)
            except PlanError as error:
                refusals.setdefault(task, f"{name}: {error.found}")
                continue
            if task == "understanding":
                _must_answer(f"a first recipe for {model} with {name}", runner, items)
                evaluation.suits(runner)
            found.setdefault(task, name)
        if task in refusals and task not in found and runner.reads_pictures:
            # Benchmarks give nothing away to calibrate on; the built-in pictures do for a first recipe.
            find_evaluation(_BUILT_IN)().calibration_items(task, 1, 0)
            found[task] = _BUILT_IN
    return found, refusals


def _must_answer(asked: str, runner: Runner, items: Sequence[Any]) -> None:
    """UsageError where the model cannot be asked such questions or read such texts."""
    kind = type(runner.model).__name__
    if not runner.generates_text:
        do = "write a recipe with evaluate: [], and passes with score: magnitude"
        raise UsageError(asked, f"{kind} does not generate text, so no question or text scores it", do)
    plain = all(getattr(item, "image", None) is None for item in items)
    if not plain and not runner.reads_pictures:
        do = "name one that scores text: --evaluation perplexity:data=FILE, any UTF-8 text"
        raise UsageError(asked, f"it shows pictures, and {kind} is run on text here", do)
    if any(hasattr(item, "text") for item in items) and not runner.reads_texts:
        raise UsageError(asked, f"it scores plain text, which {kind} is not run on here", "name another one")


def _planned(
    model: str, starter: Starter, options: Mapping[str, Mapping[str, Any]], sources: Mapping[Task, str],
    head: Mapping[str, Any], output: Path,
) -> Starter:
    """Plan every step, and leave out those that do not apply to this model, with a note for each."""
    from umcompress.plan.dry_run import plan_recipe
    from umcompress.recipe.recipe import parse_recipe

    text = recipe_text(model, starter, options, sources, head)
    recipe = parse_recipe(
        text, str(output), passes=lambda name: find_pass(name, output.parent),
        evaluations=lambda name: find_evaluation(name, output.parent), folder=output.parent,
    )
    planned = zip(starter.suggestions, plan_recipe(recipe, output.stem).steps, strict=True)
    kept, notes = [], list(starter.notes)
    for suggestion, step in planned:
        if step.problem is None:
            kept.append(suggestion)
        else:
            notes.append(left_out(step.pass_, step.problem))
    return replace(starter, suggestions=tuple(kept), notes=tuple(notes))


def left_out(name: str, problem: str) -> str:
    """Why a step is left out, on one line that begins with its pass."""
    said = "; ".join(line.strip() for line in problem.splitlines())
    return said if said.startswith(f"{name}:") else f"{name}: {said}"
