"""The front of a search: for each weighting of the tasks the choices that lose least within the budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from umcompress.documents.alone import Sizes
from umcompress.documents.base import Task
from umcompress.documents.search import ChoiceScore, FrontPoint
from umcompress.errors import PlanError
from umcompress.run.budgets import amount
from umcompress.run.composed import composed_steps, planned_sizes, with_steps
from umcompress.run.knapsack import Option, choose

if TYPE_CHECKING:
    from umcompress.run.alone import Alone

# How much of the whole the loss of understanding counts, where a model has both tasks.
WEIGHTS = (0.1, 0.3, 0.5, 0.7, 0.9)
# A cut that costs nothing is still not made for nothing.
_UNASKED = 1e-6


class Front:
    """Chooses among what was scored alone.  budgets: shares of the unpruned model that may be left."""

    def __init__(self, alone: Alone, budgets: Mapping[str, float]) -> None:
        self.alone, self.budgets = alone, budgets
        self._known: dict[tuple[str, ...], Sizes] = {}

    def points(self, choices: Sequence[ChoiceScore]) -> list[FrontPoint]:
        """A point for each weighting, each choice of choices once; none that another is expected to beat."""
        tasks = list(self.alone.unpruned.scores)
        weightings: list[dict[Task, float]] = [{tasks[0]: 1.0}]
        if len(tasks) == 2:
            weightings = [{"understanding": share, "generation": round(1 - share, 9)} for share in WEIGHTS]
        found: dict[tuple[str, ...], tuple[FrontPoint, dict[Task, float]]] = {}
        for weights in weightings:
            picked, shares = self._picked(choices, weights)
            names = tuple(choice.name for choice in picked)
            expected = {
                task: sum(choice.changes[task].value for choice in picked if task in choice.changes) for task in tasks
            }
            lost = {task: sum(_rise(choice, task) for choice in picked) for task in tasks}
            point = FrontPoint(name="", recipe="", shares=shares, expected=expected, weights=weights, choices=names)
            found.setdefault(names, (point, lost))
        points = list(found.values())
        return [point for point, lost in points if not any(_beats(other, lost) for _, other in points)]

    def _picked(
        self, choices: Sequence[ChoiceScore], weights: Mapping[Task, float]
    ) -> tuple[list[ChoiceScore], dict[str, float]]:
        """The best choices for a weighting, and the size that they leave, which shapes confirm."""
        usable = [choice for choice in choices if choice.refused is None and choice.branches]
        options, most = self._options(usable, weights)
        tightened = dict.fromkeys(self.budgets, 0.0)
        for _ in range(6):
            needed = {
                measure: self._unpruned(measure) * (1 - share) + tightened[measure]
                for measure, share in self.budgets.items()
            }
            numbers = choose(options, needed, most)
            if numbers is None:
                raise self._out_of_reach(options, most)
            picked = [usable[number] for number in numbers]
            shares = self._shares(picked, [options[number] for number in numbers])
            over = {measure: shares[measure] - share for measure, share in self.budgets.items()}
            if all(value <= 1e-9 for value in over.values()):
                break
            # Sizes add up but for parts that go with the last of a block.
            for measure, value in over.items():
                tightened[measure] += max(0.0, value) * self._unpruned(measure)
        else:
            raise self._out_of_reach(options, most)
        return picked, shares

    def _options(
        self, usable: Sequence[ChoiceScore], weights: Mapping[Task, float]
    ) -> tuple[list[Option], dict[str, int]]:
        """The choices as the program takes them; and how many parts of a kind may be dropped: not the last one."""
        options, totals = [], dict[str, set[str]]()
        for choice, cost in zip(usable, priced(usable, weights), strict=True):
            groups: dict[str, int] = {}
            for branch in choice.dropped:
                kind = " ".join([choice.stack, *branch.split(" ")[1:]])
                groups[kind] = groups.get(kind, 0) + 1
            saved = {measure: self._saved(choice, usable, measure) for measure in self.budgets}
            options.append(Option(frozenset(choice.branches), cost, saved, groups))
        for site in self.alone.graph.branches(stack="all"):
            totals.setdefault(f"{site.stack} {site.kind} {site.component}", set()).add(site.block)
        return options, {kind: len(blocks) - 1 for kind, blocks in totals.items()}

    def _unpruned(self, measure: str) -> float:
        assert self.alone.unpruned.sizes is not None
        return amount(self.alone.unpruned.sizes, measure)

    def _saved(self, choice: ChoiceScore, usable: Sequence[ChoiceScore], measure: str) -> float:
        """Of times, which are noisy, the mean over the layers that take the same step."""
        alike = [choice]
        if measure.startswith("seconds"):
            alike = [one for one in usable if (one.step, one.component) == (choice.step, choice.component)]
        amounts = [amount(one.sizes, measure) for one in alike if one.sizes is not None]
        return self._unpruned(measure) - sum(amounts) / len(amounts)

    def _shares(self, picked: Sequence[ChoiceScore], options: Sequence[Option]) -> dict[str, float]:
        """By budget, the share of the unpruned model that is left; of times, by what each choice saved alone."""
        if not picked:
            return dict.fromkeys(self.budgets, 1.0)
        names = tuple(choice.name for choice in picked)
        if names not in self._known:
            steps = composed_steps(self.alone.recipe, self.alone.graph, picked)
            self._known[names] = planned_sizes(with_steps(self.alone.recipe, steps), self.alone.source)
        sizes, found = self._known[names], dict[str, float]()
        for measure in self.budgets:
            whole = self._unpruned(measure)
            if measure.startswith("seconds"):
                found[measure] = 1 - sum(option.savings[measure] for option in options) / whole
            else:
                found[measure] = amount(sizes, measure) / whole
        return found

    def _out_of_reach(self, options: Sequence[Option], most: Mapping[str, int]) -> PlanError:
        """Says how much of each measure the choices could save at most."""
        reach = {}
        for measure in self.budgets:
            greedy = [Option(one.places, -one.savings[measure], one.savings, one.groups) for one in options]
            saved = sum(options[number].savings[measure] for number in choose(greedy, {}, most) or [])
            reach[measure] = 1 - saved / self._unpruned(measure)
        return self._refusal(reach)

    def _refusal(self, reach: Mapping[str, float]) -> PlanError:
        asked = ", ".join(f"{measure}={share:g}" for measure, share in self.budgets.items())
        found = ", ".join(f"{measure}={share:.3f}" for measure, share in reach.items())
        return PlanError(
            f"search within {asked}", f"all choices together reach {found}, one budget at a time",
            "allow more, or give the recipe steps that save more",
        )  # fmt: skip


def priced(choices: Sequence[ChoiceScore], weights: Mapping[Task, float]) -> list[float]:
    """What each choice costs: by task what it loses, on the scale of the mean over the choices, weighted."""
    scale = {
        task: sum(_rise(choice, task) for choice in choices) / len(choices) or 1.0 for task in weights
    } if choices else {}  # fmt: skip
    return [
        _UNASKED + sum(weights[task] * _rise(choice, task) / scale[task] for task in weights) for choice in choices
    ]


def _rise(choice: ChoiceScore, task: Task) -> float:
    """The distance of the outputs; where losses were scored, by how much the loss may rise.

    That is the upper end of the interval: of many noisy scores the lowest are mostly luck, and a program that takes the
    lowest would pick those.
    """
    if (distance := choice.distances.get(task)) is not None:
        return max(0.0, distance.value)
    return max(0.0, choice.changes[task].high) if task in choice.changes else 0.0


def _beats(one: Mapping[Task, float], other: Mapping[Task, float]) -> bool:
    """Whether it loses less on one task and no more on any."""
    pairs = [(one[task], other[task]) for task in other]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
