"""A search whose results are plain: whole blocks go, and what is cut is cut alike in every layer that stays."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from umcompress.documents.alone import Sizes
from umcompress.documents.base import Task
from umcompress.documents.search import ChoiceScore
from umcompress.errors import UsageError
from umcompress.extend.pass_base import ScopedPass
from umcompress.recipe.recipe import Recipe
from umcompress.run.alone import Choice, layers_of
from umcompress.run.budgets import amount
from umcompress.run.composed import composed_steps, planned_sizes, with_steps
from umcompress.run.front import Front, priced
from umcompress.run.knapsack import Option, choose

if TYPE_CHECKING:
    from umcompress.graph.model_graph import ModelGraph

ALL = "all"


def alike_choices(recipe: Recipe, graph: ModelGraph) -> list[tuple[dict[str, Any], Choice]]:
    """Steps that drop blocks, on each layer of all components at once; steps that cut, on all layers at once."""
    found = []
    for number, step in enumerate(recipe.steps):
        planner = step.pass_
        assert isinstance(planner, ScopedPass)
        unit = getattr(planner, "unit", None)
        drops = hasattr(planner, "drop")
        if planner.component is not None or (drops and unit != "block"):
            raise UsageError(
                f"search --uniform: the step {step.name}", "it is for one component, or drops a part of a block",
                "offer whole blocks (unit: block) and cuts without `component`: a plain model has all layers alike",
            )  # fmt: skip
        everywhere = layers_of(graph, planner.stack)
        every = sorted({layer for there in everywhere.values() for layer in there})
        for layers in [(layer,) for layer in every] if drops else [tuple(every)]:
            own = {name: [layer for layer in layers if layer in there] for name, there in everywhere.items()}
            passes = tuple(planner.on_layers(component, taken) for component, taken in own.items() if taken)
            stack = graph.blocks(stack=planner.stack)[0].stack
            place = {"step": number, "component": ALL, "stack": stack, "layers": layers,
                     "kept": getattr(planner, "keep_ratio", None)}  # fmt: skip
            where = layers[0] if drops else ALL
            found.append((place, Choice(f"{number:02d}-{planner.name}-{ALL}-{stack}-{where}", passes)))
    return found


def by_component(choices: Sequence[ChoiceScore], graph: ModelGraph, recipe: Recipe) -> list[ChoiceScore]:
    """The same choices, one for each component, as steps of a recipe have them."""
    found = []
    for choice in choices:
        planner = recipe.steps[choice.step].pass_
        assert isinstance(planner, ScopedPass)
        for component, there in layers_of(graph, planner.stack).items():
            layers = tuple(layer for layer in choice.layers if layer in there)
            own = {
                "component": component, "layers": layers,
                "branches": tuple(name for name in choice.branches if name.endswith(f" {component}")),
                "dropped": tuple(name for name in choice.dropped if name.endswith(f" {component}")),
            }  # fmt: skip
            if layers and own["branches"]:
                found.append(choice.model_copy(update=own))
    return found


class AlikeFront(Front):
    """Tries every width and number of heads; for each of them picks the blocks that go."""

    def _picked(
        self, choices: Sequence[ChoiceScore], weights: Mapping[Task, float]
    ) -> tuple[list[ChoiceScore], dict[str, float]]:
        usable = [choice for choice in choices if choice.refused is None and choice.branches]
        costs = dict(zip((choice.name for choice in usable), priced(usable, weights), strict=True))
        blocks = [choice for choice in usable if choice.dropped]
        cuts = [choice for choice in usable if not choice.dropped]
        best: tuple[float, list[ChoiceScore]] | None = None
        for cut in self._combinations(cuts):
            base = self._left(cut)
            options = [
                Option(frozenset(one.branches), costs[one.name], self._saved_beside(cut, one, base)) for one in blocks
            ]
            needed = {measure: base[measure] - share for measure, share in self.budgets.items()}
            numbers = choose(options, needed, None)
            if numbers is None or len(numbers) == len(blocks) > 0:
                continue
            cost = sum(costs[one.name] for one in cut) + sum(options[number].cost for number in numbers)
            if best is None or cost < best[0]:
                best = cost, [*cut, *(blocks[number] for number in numbers)]
        if best is None:
            smallest = [self._left([*cut, *blocks[1:]]) for cut in self._combinations(cuts)]
            raise self._refusal({measure: min(left[measure] for left in smallest) for measure in self.budgets})
        return best[1], self._left(best[1])

    def _combinations(self, cuts: Sequence[ChoiceScore]) -> list[list[ChoiceScore]]:
        """None or one of the cuts of each kind of part."""
        kinds: dict[str, list[ChoiceScore | None]] = {}
        for one in cuts:
            kinds.setdefault(one.branches[0].split(" ")[1], [None]).append(one)
        return [[one for one in taken if one is not None] for taken in itertools.product(*kinds.values())]

    def _saved_beside(
        self, cut: Sequence[ChoiceScore], block: ChoiceScore, base: Mapping[str, float]
    ) -> dict[str, float]:
        """What a block still saves, as a share of the whole model, where all layers are cut already."""
        left = self._left([*cut, block])
        return {measure: base[measure] - left[measure] for measure in self.budgets}

    def _left(self, picked: Sequence[ChoiceScore]) -> dict[str, float]:
        """By budget what choices leave, as a share of the unpruned model."""
        key = tuple(one.name for one in picked)
        if key not in self._known:
            recipe, graph = self.alone.recipe, self.alone.graph
            steps = composed_steps(recipe, graph, by_component(picked, graph, recipe))
            self._known[key] = planned_sizes(with_steps(recipe, steps), self.alone.source)
        sizes: Sizes = self._known[key]
        return {measure: amount(sizes, measure) / self._unpruned(measure) for measure in self.budgets}
