"""What a recipe would do, from shapes alone: no weight is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from umcompress.documents.plan import Plan
from umcompress.documents.previews import PlanReport, PlanStep
from umcompress.errors import ModelError
from umcompress.extend.pass_base import Pass
from umcompress.graph.shared_traces import traces_shared
from umcompress.models.measure import Weight, weigh
from umcompress.models.source import Source, open_source, places_of
from umcompress.plan.changes import shapes_of, site_changes, tensor_changes
from umcompress.plan.check import export_problem
from umcompress.plan.data import data_problems
from umcompress.plan.memory import predicted
from umcompress.plan.walk import DryStep, checked_skeleton, walk
from umcompress.recipe.recipe import Recipe, Step

if TYPE_CHECKING:
    from torch import nn


def plan_recipe(recipe: Recipe, name: str) -> PlanReport:
    """Every step on the shapes that the one before leaves; one that cannot be planned leaves them alone."""
    with traces_shared():
        return _planned(recipe, name)


def _planned(recipe: Recipe, name: str) -> PlanReport:
    # The recipe's device is for weights: planning needs none.
    source = open_source(
        recipe.model, recipe.dtype, components=recipe.component_globs(), trust_remote_code=recipe.trust_remote_code,
        sampling=recipe.sampling,
    )
    model = checked_skeleton(source)
    states = [_State(source, model, _weigh(source, model), source.record.plans if source.record else ())]
    steps = []
    dry_steps = list(walk(recipe, source, model))
    for dry in dry_steps:
        state, step = _after(dry, states[dry.parent])
        states.append(state)
        steps.append(step)
    measured = [
        (step.pass_, recipe.calibration_of(step.pass_), _kept_share(planned))
        for step, planned in zip(recipe.steps, steps, strict=True) if isinstance(step.pass_, Pass)
    ]  # fmt: skip
    # Out of core every tensor keeps the dtype that it has on disk.
    stored = _stored_bytes(model, source) if recipe.dtype is None else {}
    memory = predicted(model, source.family, measured, dry_steps[0].graph.on(model) if dry_steps else None, stored)
    data = data_problems(recipe, source, source.runner(model))
    whole = not any(step.problem for step in steps)
    against, said = _exported(recipe, source, dry_steps)
    loads_with, why, note = states[recipe.written()].loads_with() if whole else (None, "", "")
    return PlanReport(
        model=recipe.model, recipe_name=name, steps=tuple(steps), memory=memory,
        problems=(*(f"{place}: {error}" for place, error in data), *against), loads_with=loads_with, why=why,
        result=note, notes=(*source.family.left_aside(source.folder, model), *said),
    )


def _exported(recipe: Recipe, source: Source, dry_steps: Sequence[DryStep]) -> tuple[list[str], list[str]]:
    """What certainly stands against the recipe's `export`, and what else there is to say of it."""
    if recipe.export is None or any(dry.problem is not None for dry in dry_steps):
        return [], []
    problem, layout = export_problem(recipe, source, dry_steps), recipe.export.layout
    if problem is None:
        return [], [f"export: {layout} can hold the result, of shapes as above"]
    line = f"export: {layout} cannot hold the result: {problem.reason}"
    return ([line], []) if problem.certain else ([], [f"{line} (of shapes as above)"])


def _stored_bytes(model: nn.Module, source: Source) -> dict[str, int]:
    """Bytes of an element of each parameter in the weight files, where there are any that can be read in parts."""
    try:
        disk = places_of(model, source)
    except ModelError:
        return {}
    return {name: disk.dtype(name).itemsize for name, _ in model.named_parameters()}


def _kept_share(step: PlanStep) -> float:
    return max((site.after / site.before for site in step.sites if site.unit == "channels"), default=1.0)


class _State:
    """A skeleton after a step, what it weighs and the plans that it has been through."""

    def __init__(self, source: Source, model: nn.Module, weight: Weight, plans: tuple[Plan, ...]) -> None:
        self.source, self.model, self.weight, self.plans = source, model, weight, plans

    def loads_with(self) -> tuple[Literal["transformers", "diffusers", "umcompress"], str, str]:
        """What would load the model as it is now; why not transformers, and what it is, where there is more to say."""
        plain = self.source.family.plain(self.model, self.source.folder, self.plans)
        return ("umcompress", plain, "") if isinstance(plain, str) else (plain.loads_with, "", plain.note)


def _after(dry: DryStep, before: _State) -> tuple[_State, PlanStep]:
    """The state that a step leaves, and what is shown of it."""
    source, problem = before.source, dry.problem or dry.data_problem
    if problem is not None or dry.plan is None or dry.tensors is None:
        state = _State(source, dry.after, before.weight, before.plans)
        return state, _plan_step(dry.step, before.weight, before.weight, problem=str(problem))
    weight = _weigh(source, dry.after) if dry.plan.edits else before.weight
    changed = tensor_changes(shapes_of(dry.before), dry.tensors, shapes_of(dry.after))
    return _State(source, dry.after, weight, (*before.plans, dry.plan)), _plan_step(
        dry.step, before.weight, weight, edits=len(dry.plan.edits), declined=dry.plan.declined,
        sites=tuple(site_changes(dry.plan, dry.graph, bool(dry.planner.needs()))), tensors=tuple(changed),
    )  # fmt: skip


def _weigh(source: Source, model: nn.Module) -> Weight:
    return weigh(model, source.family, source.runner(model))


def _plan_step(step: Step, before: Weight, after: Weight, **found: Any) -> PlanStep:
    return PlanStep(
        name=step.name, pass_=step.reference, options=step.pass_.json_values(), before=before.parameters,
        after=after.parameters, bytes_before=before.bytes.total, bytes_after=after.bytes.total,
        macs_before=before.macs_per_token, macs_after=after.macs_per_token, **found,
    )  # fmt: skip
