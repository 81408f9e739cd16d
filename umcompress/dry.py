"""What a recipe would do, and what a model is, from shapes alone: no weight is read."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast

from umcompress.calibrate.statistics import Measured, Statistics
from umcompress.changes import at_work, shapes_of, site_changes, tensor_changes
from umcompress.checkpoint.fill import OwnLayout, file_problems
from umcompress.checkpoint.index import shards_of
from umcompress.documents import Component
from umcompress.edits import Plan
from umcompress.errors import ModelError, PlanError, UsageError
from umcompress.extend import Pass, TrainingPass
from umcompress.graph.model_graph import ModelGraph, trace_model
from umcompress.graph.sites import AttentionSite, BlockSite, ExpertSite, FeedForwardSite
from umcompress.graph.text import print_graph
from umcompress.measure import Weight, weigh
from umcompress.memory import predicted
from umcompress.opening import DTYPES, Source, as_stored, located, open_source
from umcompress.providers import data_problems, learning_problem
from umcompress.reach import reach_problem
from umcompress.recipe import Recipe, Step
from umcompress.rewrite.apply import shapes_only
from umcompress.views import Inspection, Missing, PlanReport, PlanStep, SiteInfo

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
        (step.pass_, getattr(step.pass_, "calibration", None) or recipe.calibration, _kept_share(planned))
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


def inspect_model(model: str, graph_path: str | None, trust_remote_code: bool = False) -> Inspection:
    """Components, stacks, sites and sizes of a model; with `graph_path` also the code of that block.

    Raises UsageError, with the nearest path, where there is no such block.
    """
    source = open_source(model, trust_remote_code=trust_remote_code)
    skeleton = _skeleton(source)
    graph = trace_model(skeleton, source.family)
    text = None if graph_path is None else print_graph(graph.block_graph(graph_path))
    weight = weigh(skeleton, source.family, source.runner(skeleton))
    return Inspection(
        model=model, family=source.family.name,
        stacks={name: len(graph.blocks(stack=name)) for name in graph.stacks},
        parameters=weight.parameters, bytes=weight.bytes, macs_per_token=weight.macs_per_token,
        sites=tuple(_sites(graph)), graph=text,
        missing=tuple(Missing(path=gap.path, kind=gap.kind, reason=gap.reason) for gap in graph.gaps()),
    )  # fmt: skip


def check(recipe: Recipe, source: Source) -> None:
    """Look, before anything is run, for what will certainly fail.

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
        task = (getattr(planner, "calibration", None) or recipe.calibration).task
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


def _skeleton(source: Source) -> nn.Module:
    """The model's shapes. Weight files, where there are any, must hold just these (by their headers)."""
    model = source.family.cast(source.skeleton(), DTYPES[source.dtype])
    files = source.family.weight_files(model)
    if not any(shards_of(source.folder, file)[0].is_file() for file in files):
        return model
    own = source.family if isinstance(source.family, OwnLayout) else None
    problems = own.file_problems(model, source.folder) if own else file_problems(model, source.folder, files)
    if problems:
        more = f"\n    and {len(problems) - 40} more" if len(problems) > 40 else ""
        raise ModelError(
            f"the weights of the model in {source.folder}", "\n    ".join(problems[:40]) + more,
            "fetch the folder again, or check that its configuration belongs to these weights",
        )  # fmt: skip
    return model


class _Dry:
    """A skeleton that goes through the steps of a recipe."""

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
        """What would load the model as it is now, and why it is not transformers, where there is more to say."""
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
        wanted = getattr(planner, "calibration", None) or recipe.calibration
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
        name=step.name, pass_=step.reference, options=step.pass_.plain(), before=before.parameters,
        after=after.parameters, bytes_before=before.bytes.total, bytes_after=after.bytes.total,
        macs_before=before.macs_per_token, macs_after=after.macs_per_token, **found,
    )  # fmt: skip


# -- planning without values ----------------------------------------------------------------------------


def propose(planner: Pass, graph: ModelGraph, task: str) -> Plan:
    """The plan of a pass on a skeleton.  PlanError where it reads values although there are none."""
    values = {needed: _NotMeasured(needed, {}, task) for needed in planner.needs()}
    try:
        return planner.plan(graph, Statistics(values, task, dry=True)).plan
    except (RuntimeError, TypeError) as error:
        if not _NO_VALUES.search(str(error)):
            raise
        _refuse(planner.name, f"it reads values of weights ({str(error).splitlines()[0]})", error)


class _NotMeasured(Measured):
    """Stands for a statistic that the pass declared and that a dry run does not collect."""

    def __getitem__(self, site: Any) -> NoReturn:
        _refuse(type(self._declaration).__name__, "it reads what was measured, and nothing is")


class _NeedsValues(PlanError):
    """The pass reads values, so it can be planned in earnest only."""


def _refuse(name: str, found: str, cause: Exception | None = None) -> NoReturn:
    raise _NeedsValues(
        asked=f"{name}: plan on shapes alone", found=found,
        do="a pass looks at statistics.dry first: when it is true, any members will do in the right number",
    ) from cause  # fmt: skip


# -- what there is --------------------------------------------------------------------------------------


def _sites(graph: ModelGraph) -> Iterator[SiteInfo]:
    """Block by block: what it has of each component, its attentions, its feed-forwards."""
    attentions: dict[str, list[AttentionSite]] = {}
    feed_forwards: dict[str, list[FeedForwardSite]] = {}
    for site in graph.attentions(stack="all"):
        attentions.setdefault(site.block, []).append(site)
    for place in graph.feed_forwards(stack="all"):
        feed_forwards.setdefault(place.block, []).append(place)
    for block in graph.blocks(stack="all"):
        for component in sorted(block.components):
            kinds = [branch.kind for branch in block.branches if branch.component == component]
            yield _info(block, "block", component, " + ".join(kinds))
        for site in attentions.get(block.path, ()):
            heads = f"{site.query_heads} heads of {site.head_dim}, {site.key_value_groups} groups"
            yield _info(site, "attention", site.component, heads)
        for place in feed_forwards.get(block.path, ()):
            kind = f"{'gated ' if place.gated else ''}{place.activation}"
            yield _info(place, "feed_forward", place.component, f"{place.width} channels, {kind}")
        for split in graph.block(block.path).experts:
            parts = at_work(split.experts, split.width, split.active, split.shared_width)
            yield _info(split, "experts", split.component, parts)


def _info(
    site: BlockSite | AttentionSite | FeedForwardSite | ExpertSite, kind: str, component: str, shape: str
) -> SiteInfo:
    part = cast(Component, component)
    return SiteInfo(
        path=site.path, kind=kind, component=part, stack=site.stack, index=site.index, shape=shape
    )
