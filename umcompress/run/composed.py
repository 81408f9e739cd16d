"""Recipes made of choices: steps in an order that keeps the numbers of layers right, sizes from shapes, text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umcompress.documents.alone import Sizes
from umcompress.documents.base import Document
from umcompress.documents.search import ChoiceScore
from umcompress.errors import CheckError
from umcompress.extend.pass_base import ScopedPass
from umcompress.models.measure import weigh
from umcompress.plan.walk import checked_skeleton, walk
from umcompress.recipe.recipe import Recipe, RecipeHead, Step
from umcompress.recipe.yaml_writer import yaml_text

if TYPE_CHECKING:
    from umcompress.graph.model_graph import ModelGraph
    from umcompress.models.source import Source

Group = tuple[int, str, str]


def composed_steps(recipe: Recipe, graph: ModelGraph, picked: Sequence[ChoiceScore]) -> tuple[Step, ...]:
    """Steps that make all the choices: what is cut first, what is dropped after it.

    A block of which nothing is left goes, and later blocks move down: later steps call them by their new numbers.
    """
    groups: dict[Group, list[ChoiceScore]] = {}
    for choice in sorted(picked, key=lambda one: (bool(one.dropped), one.step)):
        groups.setdefault((choice.step, choice.component, choice.stack), []).append(choice)
    left = _Blocks(graph)
    steps: list[Step] = []
    for (number, component, stack), choices in groups.items():
        layers = [left.number(stack, layer) for choice in choices for layer in choice.layers]
        given = recipe.steps[number]
        assert isinstance(given.pass_, ScopedPass)
        planner = given.pass_.on_layers(component, sorted(layers))
        steps.append(Step(name=f"{len(steps) + 1:02d}-{planner.name}", reference=given.reference, pass_=planner))
        left.drop([branch for choice in choices for branch in choice.dropped])
    return tuple(steps)


class _Blocks:
    """Which blocks are left, and what is left in each."""

    def __init__(self, graph: ModelGraph) -> None:
        self.branches = {
            block.path: {f"{block.path} {branch.kind} {branch.component}" for branch in block.branches}
            for block in graph.blocks(stack="all")
        }
        self.complete = {block.path for block in graph.blocks(stack="all") if block.complete}
        self.stacks: dict[str, list[tuple[int, str]]] = {}
        for block in graph.blocks(stack="all"):
            self.stacks.setdefault(block.stack, []).append((block.index, block.path))

    def number(self, stack: str, layer: int) -> int:
        return next(place for place, (index, _) in enumerate(self.stacks[stack]) if index == layer)

    def drop(self, branches: Sequence[str]) -> None:
        for branch in branches:
            self.branches[branch.split(" ")[0]].discard(branch)
        gone = {path for path, own in self.branches.items() if not own and path in self.complete}
        self.stacks = {
            stack: [block for block in blocks if block[1] not in gone] for stack, blocks in self.stacks.items()
        }


def with_steps(recipe: Recipe, steps: Sequence[Step]) -> Recipe:
    """The recipe with other steps, without a grid and a folder of its own.

    Only what they come to together is scored, unless the recipe says more: their order means nothing.
    """
    measure = recipe.measure
    if "scores" not in measure.model_fields_set:
        measure = measure.model_copy(update={"scores": "last"})
    return recipe.model_copy(update={"steps": tuple(steps), "sweep": None, "output": None, "measure": measure})


def planned_sizes(recipe: Recipe, source: Source) -> Sizes:
    """What the result weighs, from shapes alone.  CheckError where a step cannot be planned."""
    model = checked_skeleton(source)
    for dry in walk(recipe, source, model):
        if dry.problem is not None:
            raise CheckError(f"the step {dry.step.name} of a recipe that was put together", str(dry.problem))
        model = dry.after
    weight = weigh(model, source.family, source.runner(model))
    return Sizes(parameters=weight.parameters, bytes=weight.bytes, macs_per_token=weight.macs_per_token)


def recipe_text(recipe: Recipe, folder: Path, about: str) -> str:
    """The recipe as YAML for a file in `folder`: what differs from the defaults, after a comment."""
    values = recipe.resolved_in(folder)
    head = {key: value for key, value in values.items() if key not in ("evaluate", "steps")}
    evaluations = [
        {name: _without_defaults(options, type(evaluation), ("seed",))}
        for one, evaluation in zip(values["evaluate"], recipe.evaluate, strict=True) for name, options in one.items()
    ]  # fmt: skip
    steps = [
        _without_defaults(values_of, type(step.pass_), ("name", "pass"))
        for values_of, step in zip(values["steps"], recipe.steps, strict=True)
    ]
    found = {**_without_defaults(head, RecipeHead, ("model", "calibration")), "evaluate": evaluations, "steps": steps}
    return f"# {about}\n" + yaml_text(found)


def _without_defaults(values: Mapping[str, Any], kind: type[Document], kept: Sequence[str]) -> dict[str, Any]:
    fields = kind.model_fields
    defaults = {key: field.get_default(call_default_factory=True) for key, field in fields.items()
                if not field.is_required()}  # fmt: skip
    return {
        key: value for key, value in values.items()
        if key in kept or key not in defaults or value != _plain(defaults[key])
    }


def _plain(value: Any) -> Any:
    """A default as JSON has it."""
    if hasattr(value, "json_values"):
        return value.json_values()
    return list(value) if isinstance(value, tuple) else value
