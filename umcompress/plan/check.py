"""Check that a recipe fits the shapes of its model, before anything runs."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from umcompress.errors import PlanError, UsageError
from umcompress.extend.pass_base import Pass
from umcompress.graph.model_graph import trace_model
from umcompress.models.source import Source
from umcompress.plan.data import data_problems
from umcompress.plan.dry_run import _data_problem, _NeedsValues, _skeleton, propose
from umcompress.recipe.recipe import Recipe
from umcompress.rewrite.apply import shapes_only

if TYPE_CHECKING:
    from torch import nn


def check(recipe: Recipe, source: Source) -> None:
    """Raise for everything that will certainly fail.

    Raises ModelError where the weight files do not hold what the model needs; PlanError or UsageError where a step
    selects nothing, wants what is not legal or has no data, and where an evaluation has none.  What a pass decides by
    measuring may change what later steps find: of these only such are refused as cannot be planned on the unmodified
    model either.
    """
    skeletons = [_skeleton(source)]
    problems: list[tuple[str, PlanError | UsageError]] = []
    for step, parent in zip(recipe.steps, recipe.parents(), strict=True):
        skeletons.append(skeleton := copy.deepcopy(skeletons[parent]))
        planner = step.pass_
        assert isinstance(planner, Pass)
        task = recipe.calibration_of(planner).task
        try:
            plan = propose(planner, trace_model(skeleton, source.family), task)
            shapes_only(skeleton, source.family, [plan])
            if (problem := _data_problem(recipe, planner, plan, skeleton, source)) is not None:
                problems.append((step.name, problem))
        except _NeedsValues:
            continue
        except (PlanError, UsageError) as error:
            if not _fits(planner, skeletons[0], source, task):
                problems.append((step.name, error))
    problems += data_problems(recipe, source, source.runner(skeletons[0]))
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
