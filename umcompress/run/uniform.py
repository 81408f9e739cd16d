"""The uniform recipe of a given size: every layer of every component alike, as a search is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from umcompress.documents.alone import Sizes
from umcompress.documents.search import ChoiceScore
from umcompress.extend.pass_base import ScopedPass
from umcompress.recipe.recipe import Recipe, Step
from umcompress.run.budgets import amount
from umcompress.run.composed import planned_sizes, with_steps

if TYPE_CHECKING:
    from umcompress.graph.model_graph import ModelGraph
    from umcompress.models.source import Source

Made = tuple[tuple[Step, ...], dict[str, float]]
# The ratio of heads (None: all stay) and the width of feed-forwards -> what is left then.
Known = dict[tuple[float | None, int], Sizes]


def uniform_recipe(
    recipe: Recipe, source: Source, graph: ModelGraph, choices: Sequence[ChoiceScore], measure: str, share: float,
    known: Known | None = None,
) -> Made | None:  # fmt: skip
    """Steps that leave at least `share` of a measure, by less than a channel a layer more; None where none can.

    A channel is one of the narrowest layer, and as many of wider ones as are the same share. One width for all
    feed-forwards that the recipe may narrow. Where the narrowest are too large, heads go as well, by the recipe's own
    steps, the mildest first.  known: sizes that earlier calls found, for the same recipe.
    """
    widths, heads = _cuts(recipe, "feed_forward", choices), _cuts(recipe, "attention", choices)
    components = {component for component, _ in widths}
    if not widths:
        return None
    first = {component: next(step for own, step in widths if own == component) for component in components}
    levels: list[float | None] = [None, *sorted({_ratio(step) for _, step in heads}, reverse=True)]
    # Of layers of unlike widths by the narrowest: a ratio that takes a channel of it takes one of all.
    full = min(
        site.width for component, step in first.items()
        for site in graph.feed_forwards(component=component, stack=_stack(step))
    )  # fmt: skip
    sizes: Known = {} if known is None else known

    def size(level: float | None, width: int) -> float:
        if (level, width) not in sizes:
            sizes[level, width] = planned_sizes(with_steps(recipe, steps(level, width)), source)
        return amount(sizes[level, width], measure)

    def left(level: float | None, width: int) -> float:
        return size(level, width) / size(None, full)

    def steps(level: float | None, width: int) -> tuple[Step, ...]:
        cut = [step for component, step in heads if _ratio(step) == level]
        narrowed = [_with_ratio(step, width / full) for step in first.values()] if width < full else []
        return tuple(
            step.model_copy(update={"name": f"{number:02d}-{step.pass_.name}", "after": None})  # type: ignore[attr-defined]
            for number, step in enumerate([*cut, *narrowed], start=1)
        )

    for level in levels:
        if left(level, 1) > share:
            continue
        low, high = 1, full  # left(low) <= share; high is enough
        while high - low > 1:
            # Sizes are linear in the width, or nearly.
            at_low, at_high = left(level, low), left(level, high) if steps(level, high) else 1.0
            guess = low + round((share - at_low) / (at_high - at_low) * (high - low)) if at_high > at_low else low + 1
            middle = min(max(guess, low + 1), high - 1)
            low, high = (low, middle) if left(level, middle) >= share else (middle, high)
            if left(level, high) >= share > left(level, high - 1):
                break
        return steps(level, high), {measure: left(level, high)}
    return None


def _cuts(recipe: Recipe, kind: str, choices: Sequence[ChoiceScore]) -> list[tuple[str, Step]]:
    """Each component with each step that cuts its parts of a kind by a ratio, and drops none."""
    own = {
        (choice.component, choice.step): None for choice in choices
        if choice.branches and not choice.dropped and all(f" {kind} " in branch for branch in choice.branches)
    }  # fmt: skip
    found = []
    for component, number in own:
        step = recipe.steps[number]
        if isinstance(step.pass_, ScopedPass) and hasattr(step.pass_, "keep_ratio"):
            placed = step.pass_.model_copy(update={"component": component})
            found.append((component, step.model_copy(update={"pass_": placed})))
    return found


def _stack(step: Step) -> str | None:
    assert isinstance(step.pass_, ScopedPass)
    return step.pass_.stack


def _ratio(step: Step) -> float:
    return float(step.pass_.keep_ratio)  # type: ignore[attr-defined]


def _with_ratio(step: Step, ratio: float) -> Step:
    return step.model_copy(update={"pass_": step.pass_.model_copy(update={"keep_ratio": ratio})})
