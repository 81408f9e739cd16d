"""Check that a recipe fits the shapes of its model, before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from umcompress.errors import PlanError, UsageError
from umcompress.extend.pass_base import Pass
from umcompress.graph.model_graph import trace_model
from umcompress.models.source import Source
from umcompress.plan.data import data_problems
from umcompress.plan.walk import NeedsValues, checked_skeleton, propose, walk
from umcompress.recipe.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn


def check(recipe: Recipe, source: Source) -> None:
    """Raise for everything that will certainly fail.

    Raises ModelError where the weight files do not hold what the model needs; PlanError or UsageError where a step
    selects nothing, wants what is not legal or has no data, and where an evaluation has none.  What a pass decides by
    measuring may change what later steps find: of these only such are refused as cannot be planned on the unmodified
    model either.
    """
    model = checked_skeleton(source)
    problems: list[tuple[str, PlanError | UsageError]] = []
    for dry in walk(recipe, source, model):
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


def _fits(planner: Pass, model: nn.Module, source: Source, task: str) -> bool:
    try:
        propose(planner, trace_model(model, source.family), task)
    except (PlanError, UsageError):
        return False
    return True
