"""Scores of lm-eval's results: its numbers, our intervals.  Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from umcompress.extend import KindScore, Score, mean_of_kinds, mean_score, proportion

GROUPS = 50  # of documents that the jackknife leaves out in turn


def scored(
    results: Mapping[str, Any], values: Mapping[str, Mapping[tuple[str, str], Sequence[Any]]],
    aggregations: Mapping[str, Mapping[str, Callable[[Sequence[Any]], float]]],
    chances: Mapping[str, float] | None = None,
) -> Score:
    """The score of `evaluate`'s results; `values` are those that each number was aggregated from."""
    kinds: dict[str, KindScore] = {}
    items: dict[str, list[float]] = {}
    numbers: dict[str, KindScore] = {}
    for task, parts in values.items():
        better = results["higher_is_better"].get(task, {})
        for (metric, chosen), found in parts.items():
            value = float(results["results"][task][f"{metric},{chosen}"])
            if not math.isfinite(value):
                continue
            number = interval(value, found, aggregations[task].get(metric, _plain))
            numbers[f"{task}: {metric}" + ("" if chosen == "none" else f" ({chosen})")] = number
            if task not in kinds:
                kinds[task] = _upward(metric, number, better.get(metric) is not False)
                items[task] = _items(found, kinds[task].value)
                if metric.startswith("acc") and task in (chances or {}):
                    kinds[task] = kinds[task].model_copy(update={"chance": (chances or {})[task]})
    if not kinds:
        raise ValueError("none of the tasks gives a number")
    score = mean_of_kinds(kinds).model_copy(update={"numbers": numbers | _of_groups(results, numbers)})
    return _with_items(score, list(items.values())) if all(map(bool, items.values())) else score


def _items(values: Sequence[Any], mean: float) -> list[float]:
    """What each document adds to the score of its task, whose mean that is; nothing where it is no such mean."""
    plain = [float(one) for one in values if isinstance(one, int | float) or hasattr(one, "item")]
    if len(plain) < len(values):
        return []
    own = sum(plain) / len(plain)
    turned = -1.0 if math.isclose(own, -mean, rel_tol=1e-9, abs_tol=1e-12) and own else 1.0
    return [turned * one for one in plain] if math.isclose(turned * own, mean, rel_tol=1e-9, abs_tol=1e-12) else []


def _with_items(score: Score, groups: Sequence[Sequence[float]]) -> Score:
    items = tuple(one for group in groups for one in group)
    sizes = tuple(map(len, groups)) if len(groups) > 1 else ()
    graded = all(0 <= one <= 1 for one in items)
    return score.model_copy(update={
        "items": items, "item_groups": sizes, "items_are": "grades" if graded else "values",
    })


def interval(value: float, values: Sequence[Any], aggregate: Callable[[Sequence[Any]], float]) -> KindScore:
    """Of a share, Wilson's; of another mean, Student's; of anything else, a jackknife over documents."""
    plain = [float(one) for one in values if isinstance(one, int | float) or hasattr(one, "item")]
    if len(plain) == len(values) and math.isclose(sum(plain) / len(plain), value, rel_tol=1e-9, abs_tol=1e-12):
        found = proportion(sum(plain), len(plain)) if set(plain) <= {0.0, 1.0} else mean_score(plain)
        return found.model_copy(update={"value": value, "low": min(found.low, value), "high": max(found.high, value)})
    half = _jackknife(values, aggregate)
    return KindScore(value=value, low=value - half, high=value + half, n=len(values))


def _jackknife(values: Sequence[Any], aggregate: Callable[[Sequence[Any]], float]) -> float:
    """Half of the 95 % interval; one document by itself says nothing of the spread and gets none."""
    count = min(GROUPS, len(values))
    if count < 2:
        return 0.0
    left = [
        float(aggregate([one for index, one in enumerate(values) if index % count != group])) for group in range(count)
    ]
    middle = sum(left) / count
    variance = (count - 1) / count * sum((one - middle) ** 2 for one in left)
    return 1.959963984540054 * math.sqrt(variance) if math.isfinite(variance) else 0.0


def _upward(metric: str, number: KindScore, higher: bool) -> KindScore:
    """The number turned so that more is better."""
    if higher:
        return number
    if "perplexity" in metric and number.value > 0:
        turned = [1 / number.value] + [1 / end for end in (number.low, number.high) if end > 0]
        return KindScore(value=turned[0], low=min(turned), high=max(turned), n=number.n)
    return KindScore(value=-number.value, low=-number.high, high=-number.low, n=number.n)


def _of_groups(results: Mapping[str, Any], numbers: Mapping[str, KindScore]) -> dict[str, KindScore]:
    """lm-eval's numbers of groups, their intervals combined from the parts', each by its weight."""
    found: dict[str, KindScore] = {}
    for group, metrics in results.get("groups", {}).items():
        tasks = _leaves(group, results.get("group_subtasks", {}))
        for key, value in metrics.items():
            metric, _, chosen = key.partition(",")
            if not chosen or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            name = metric + ("" if chosen == "none" else f" ({chosen})")
            parts = [numbers[f"{task}: {name}"] for task in tasks if f"{task}: {name}" in numbers]
            if parts:
                total = sum(part.n for part in parts)
                half = math.sqrt(sum((part.n / total * (part.high - part.low) / 2) ** 2 for part in parts))
                found[f"{group}: {name}"] = KindScore(value=value, low=value - half, high=value + half, n=total)
    return found


def _leaves(group: str, below: Mapping[str, Sequence[str]]) -> list[str]:
    return [leaf for child in below.get(group, ()) for leaf in _leaves(child, below)] or [group]


def _plain(values: Sequence[Any]) -> float:
    return float(sum(values)) / len(values)
