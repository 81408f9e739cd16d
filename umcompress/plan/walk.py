"""Walk the steps of a recipe on shapes alone: what `plan` shows, and what is looked at before anything runs."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from umcompress.calibrate.statistics import Measured, Statistics
from umcompress.checkpoint.disk import CustomWeightLayout
from umcompress.checkpoint.fill import file_problems
from umcompress.checkpoint.index import shards_of
from umcompress.documents.plan import Plan
from umcompress.errors import ModelError, PlanError, UmcompressError, UsageError
from umcompress.extend.pass_base import Pass, Proposal, TrainingPass
from umcompress.extend.users_code import call
from umcompress.graph.model_graph import ModelGraph, trace_model
from umcompress.models.source import DTYPES, Source
from umcompress.plan.data import learning_problem
from umcompress.plan.data_reach import reach_problem
from umcompress.recipe.recipe import Recipe, Step
from umcompress.rewrite.apply import shapes_only
from umcompress.rewrite.tensors import TensorMap

if TYPE_CHECKING:
    from torch import nn

# How torch says that a tensor of the meta device has no values.
_NO_VALUES = re.compile(r"\bmeta\b|register_meta", re.IGNORECASE)


@dataclass(frozen=True)
class DryStep:
    """One step on shapes.

    before, after: the skeletons that it starts from and leaves; parent: the number of the step that `before` is of.
    plan, tensors: None where there is a `problem` with planning. data_problem: what is wrong with its data.
    """

    step: Step
    planner: Pass
    parent: int
    before: nn.Module
    after: nn.Module
    graph: ModelGraph
    plan: Plan | None = None
    tensors: TensorMap | None = None
    problem: PlanError | UsageError | None = None
    data_problem: PlanError | UsageError | None = None


def walk(recipe: Recipe, source: Source, model: nn.Module) -> Iterator[DryStep]:
    """Every step on the shapes that the one before leaves; one that cannot be planned leaves them as they are."""
    models = [model]
    for step, parent in zip(recipe.steps, recipe.parents(), strict=True):
        models.append(copy.deepcopy(models[parent]))
        yield _dry_step(recipe, source, step, parent, models[parent], models[-1])


def _dry_step(
    recipe: Recipe, source: Source, step: Step, parent: int, before: nn.Module, model: nn.Module
) -> DryStep:
    planner = step.pass_
    assert isinstance(planner, Pass)
    graph = trace_model(model, source.family)
    try:
        plan = propose(planner, graph, recipe.calibration_of(planner).task)
        tensors = shapes_only(model, source.family, [plan])
    except (PlanError, UsageError) as error:
        return DryStep(step, planner, parent, before, model, graph, problem=error)
    if isinstance(planner, TrainingPass):
        wrong = learning_problem(recipe, planner, plan.tensor_names(), model, source)
    else:
        wrong = reach_problem(recipe, planner, model, source)
    return DryStep(step, planner, parent, before, model, graph, plan, tensors, data_problem=wrong)


def checked_skeleton(source: Source) -> nn.Module:
    """The model's shapes. Weight files, where there are any, must hold just these (by their headers)."""
    model = source.family.cast(source.skeleton(), DTYPES[source.dtype])
    if problems := header_problems(model, source):
        more = f"\n    and {len(problems) - 40} more" if len(problems) > 40 else ""
        raise ModelError(
            f"the weights of the model in {source.folder}", "\n    ".join(problems[:40]) + more,
            "fetch the folder again, or check that its configuration belongs to these weights",
        )  # fmt: skip
    return model


def header_problems(model: nn.Module, source: Source) -> list[str]:
    """What is missing, unexpected or of another shape in the weight files, where there are any, by their headers."""
    files = source.family.weight_files(model)
    if not any(shards_of(source.folder, file)[0].is_file() for file in files):
        return []
    own = source.family if isinstance(source.family, CustomWeightLayout) else None
    return own.file_problems(model, source.folder) if own else file_problems(model, source.folder, files)


# -- planning without values ----------------------------------------------------------------------------


def propose(planner: Pass, graph: ModelGraph, task: str) -> Plan:
    """The plan of a pass on a skeleton.  PlanError where it reads values although there are none."""
    values = {needed: _NotMeasured(needed, {}, task) for needed in call(planner, "needs")}
    try:
        proposal: Proposal = call(planner, "plan", graph, Statistics(values, task, dry=True))
        return proposal.plan
    except (RuntimeError, TypeError, UmcompressError) as error:
        cause = error.__cause__ if isinstance(error, UmcompressError) else error
        if not isinstance(cause, RuntimeError | TypeError) or not _NO_VALUES.search(str(cause)):
            raise
        _refuse(planner.name, f"it reads values of weights ({str(cause).splitlines()[0]})", cause)


class _NotMeasured(Measured):
    """A placeholder for a declared statistic, which a dry run does not collect."""

    def __getitem__(self, site: Any) -> NoReturn:
        _refuse(type(self._declaration).__name__, "it reads what was measured, and nothing is")


class NeedsValues(PlanError):
    """The pass reads values, so it cannot be planned in a dry run."""


def _refuse(name: str, found: str, cause: Exception | None = None) -> NoReturn:
    raise NeedsValues(
        asked=f"{name}: plan on shapes alone", found=found,
        do="a pass looks at statistics.dry first: when it is true, any members will do in the right number",
    ) from cause  # fmt: skip
