"""Plan a recipe on shapes alone: no weight is read."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from umcompress.calibrate.statistics import Measured, Statistics
from umcompress.checkpoint.disk import CustomWeightLayout
from umcompress.checkpoint.fill import file_problems
from umcompress.checkpoint.index import shards_of
from umcompress.documents.plan import Plan
from umcompress.documents.previews import PlanReport, PlanStep
from umcompress.errors import ModelError, PlanError, UmcompressError, UsageError
from umcompress.extend.pass_base import Pass, Proposal, TrainingPass
from umcompress.extend.users_code import call
from umcompress.graph.model_graph import ModelGraph, trace_model
from umcompress.models.measure import Weight, weigh
from umcompress.models.source import DTYPES, Source, as_stored, located, open_source
from umcompress.plan.changes import shapes_of, site_changes, tensor_changes
from umcompress.plan.data import data_problems, learning_problem
from umcompress.plan.data_reach import reach_problem
from umcompress.plan.memory import predicted
from umcompress.recipe.recipe import Recipe, Step
from umcompress.rewrite.apply import shapes_only

if TYPE_CHECKING:
    from torch import nn

# How torch says that a tensor of the meta device has no values.
_NO_VALUES = re.compile(r"\bmeta\b|register_meta", re.IGNORECASE)


def plan_recipe(recipe: Recipe, name: str) -> PlanReport:
    """Every step on the shapes that the one before leaves; one that cannot be planned leaves them alone."""
    # The recipe's device is for weights: planning needs none.
    source = open_source(
        recipe.model, recipe.dtype, components=recipe.component_globs(), trust_remote_code=recipe.trust_remote_code
    )
    states = [_Dry(source)]
    steps = []
    for step, parent in zip(recipe.steps, recipe.parents(), strict=True):
        states.append(copy.deepcopy(states[parent]))
        steps.append(states[-1].step(step, recipe))
    measured = [
        (step.pass_, recipe.calibration_of(step.pass_), _kept_share(planned))
        for step, planned in zip(recipe.steps, steps, strict=True) if isinstance(step.pass_, Pass)
    ]  # fmt: skip
    memory = predicted(states[0].model, source.family, measured)
    if recipe.dtype is None and (stored := _stored(source)) is not None:
        # Out of core every tensor keeps the dtype that it has on disk.
        on_disk = predicted(stored, source.family, measured)
        memory = memory.model_copy(update={"out_of_core": on_disk.out_of_core})
    data = data_problems(recipe, source, source.runner(states[0].model))
    loads_with, why = states[-1].loads_with() if not any(step.problem for step in steps) else (None, "")
    return PlanReport(
        model=recipe.model, recipe_name=name, steps=tuple(steps), memory=memory,
        problems=tuple(f"{place}: {error}" for place, error in data), loads_with=loads_with, why=why,
        notes=tuple(source.family.left_aside(source.folder)),
    )


def _stored(source: Source) -> nn.Module | None:
    """A skeleton with the dtypes of the weight files, where there are any that can be read in parts."""
    try:
        model, disk = located(source)
    except ModelError:
        return None
    as_stored(model, disk)
    return model


def _kept_share(step: PlanStep) -> float:
    return max((site.after / site.before for site in step.sites if site.unit == "channels"), default=1.0)


def _skeleton(source: Source) -> nn.Module:
    """The model's shapes. Weight files, where there are any, must hold just these (by their headers)."""
    model = source.family.cast(source.skeleton(), DTYPES[source.dtype])
    files = source.family.weight_files(model)
    if not any(shards_of(source.folder, file)[0].is_file() for file in files):
        return model
    own = source.family if isinstance(source.family, CustomWeightLayout) else None
    problems = own.file_problems(model, source.folder) if own else file_problems(model, source.folder, files)
    if problems:
        more = f"\n    and {len(problems) - 40} more" if len(problems) > 40 else ""
        raise ModelError(
            f"the weights of the model in {source.folder}", "\n    ".join(problems[:40]) + more,
            "fetch the folder again, or check that its configuration belongs to these weights",
        )  # fmt: skip
    return model


class _Dry:
    """A skeleton on which the steps of a recipe are planned and applied."""

    def __init__(self, source: Source) -> None:
        self.source, self.model = source, _skeleton(source)
        self.weight = self._weigh()
        self.plans: tuple[Plan, ...] = record.plans if (record := source.record) is not None else ()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Dry:
        other = object.__new__(_Dry)
        other.source, other.model, other.weight = self.source, copy.deepcopy(self.model, memo), self.weight
        other.plans = self.plans
        return other

    def loads_with(self) -> tuple[Literal["transformers", "umcompress"], str]:
        """Which library would load the model as it is now, and why it is not transformers if it is not."""
        plain = self.source.family.plain(self.model, self.source.folder, self.plans)
        return ("umcompress", plain) if isinstance(plain, str) else (plain.loads_with, "")

    def _weigh(self) -> Weight:
        return weigh(self.model, self.source.family, self.source.runner(self.model))

    def step(self, step: Step, recipe: Recipe) -> PlanStep:
        """One step; the skeleton changes only where there is no problem."""
        before, shapes = self.weight, shapes_of(self.model)
        graph = trace_model(self.model, self.source.family)
        planner = step.pass_
        assert isinstance(planner, Pass)
        wanted = recipe.calibration_of(planner)
        try:
            plan = propose(planner, graph, wanted.task)
            tensors = shapes_only(self.model, self.source.family, [plan])
            if (problem := _data_problem(recipe, planner, plan, self.model, self.source)) is not None:
                raise problem
        except (PlanError, UsageError) as error:
            return _plan_step(step, before, before, problem=str(error))
        if plan.edits:
            self.weight = self._weigh()
        self.plans = (*self.plans, plan)
        changed = tensor_changes(shapes, tensors, shapes_of(self.model))
        return _plan_step(
            step, before, self.weight, edits=len(plan.edits), declined=plan.declined,
            sites=tuple(site_changes(plan, graph, bool(planner.needs()))), tensors=tuple(changed),
        )  # fmt: skip


def _data_problem(
    recipe: Recipe, planner: Pass, plan: Plan, model: nn.Module, source: Source
) -> PlanError | UsageError | None:
    if not isinstance(planner, TrainingPass):
        return reach_problem(recipe, planner, model, source)
    return learning_problem(recipe, planner, plan.tensor_names(), model, source)


def _plan_step(step: Step, before: Weight, after: Weight, **found: Any) -> PlanStep:
    return PlanStep(
        name=step.name, pass_=step.reference, options=step.pass_.json_values(), before=before.parameters,
        after=after.parameters, bytes_before=before.bytes.total, bytes_after=after.bytes.total,
        macs_before=before.macs_per_token, macs_after=after.macs_per_token, **found,
    )  # fmt: skip


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


class _NeedsValues(PlanError):
    """The pass reads values, so it cannot be planned in a dry run."""


def _refuse(name: str, found: str, cause: Exception | None = None) -> NoReturn:
    raise _NeedsValues(
        asked=f"{name}: plan on shapes alone", found=found,
        do="a pass looks at statistics.dry first: when it is true, any members will do in the right number",
    ) from cause  # fmt: skip


# -- what there is --------------------------------------------------------------------------------------
