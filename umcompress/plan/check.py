"""Check that a recipe fits the shapes of its model, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from umcompress.errors import PlanError, UsageError
from umcompress.extend.pass_base import Pass
from umcompress.graph.model_graph import trace_model
from umcompress.models.source import Source
from umcompress.plan.data import data_problems
from umcompress.plan.walk import DryStep, NeedsValues, checked_skeleton, propose, walk
from umcompress.recipe.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ExportProblem:
    """Why the result cannot be exported as the recipe asks; certain: whatever the steps measure."""

    reason: str
    certain: bool


def check(recipe: Recipe, source: Source) -> list[DryStep]:
    """Raise for everything that will certainly fail; the steps on shapes.

    Raises ModelError where the weight files do not hold what the model needs; PlanError or UsageError where a step
    selects nothing, wants what is not legal or has no data, and where an evaluation has none.  What a pass decides by
    measuring may change what later steps find: of these only such are refused as cannot be planned on the unmodified
    model either.
    """
    model = checked_skeleton(source)
    problems: list[tuple[str, PlanError | UsageError]] = []
    dry_steps = list(walk(recipe, source, model))
    for dry in dry_steps:
        if dry.data_problem is not None:
            problems.append((dry.step.name, dry.data_problem))
        if dry.problem is None or isinstance(dry.problem, NeedsValues):
            continue
        if not _fits(dry.planner, model, source, recipe.calibration_of(dry.planner).task):
            problems.append((dry.step.name, dry.problem))
    problems += data_problems(recipe, source, source.runner(model))
    if len(problems) == 1:
        name, problem = problems[0]
        if not name.startswith("evaluate "):
            problem.add_note(f"  step: {name}")
        raise problem
    if problems:
        listed = [f"{name}: {'; '.join(str(problem).splitlines())}" for name, problem in problems]
        raise PlanError(f"{len(problems)} problems of the recipe on {source.name}", "\n    ".join(listed))
    return dry_steps


def export_problem(recipe: Recipe, source: Source, dry_steps: Sequence[DryStep]) -> ExportProblem | None:
    """What stands against the recipe's `export`, by the shapes of the model that is written; None: nothing."""
    if recipe.export is None or any(dry.problem is not None for dry in dry_steps):
        return None
    model = dry_steps[recipe.written() - 1].after
    found = source.family.laid_out(recipe.export.layout, model, source.folder, pad=recipe.export.pad)
    if not isinstance(found, str):
        return None
    return ExportProblem(found or "there is none", certain=not any(dry.planner.needs() for dry in dry_steps))


def _fits(planner: Pass, model: nn.Module, source: Source, task: str) -> bool:
    try:
        propose(planner, trace_model(model, source.family), task)
    except (PlanError, UsageError):
        return False
    return True
