"""Scores with their uncertainty; whether two differ by more than chance gives.

Intervals are at 95 %. A proportion has Wilson's interval; a mean of kinds and a difference of two scores
combine the intervals of their parts by MOVER (Zou and Donner, 2008), which needs only the parts' limits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from umcompress.documents.base import Document, Task

_Z = 1.959963984540054  # the normal quantile of 97.5 %


class KindScore(Document):
    """A share or mean over `n` items, with its 95 % interval; `chance` is the value that guessing gets."""

    value: float = Field(allow_inf_nan=False)
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    n: PositiveInt
    chance: float | None = None

    @model_validator(mode="after")
    def _ordered(self) -> KindScore:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"the interval {self.low} to {self.high} does not hold the value {self.value}")
        return self


class Score(KindScore):
    """A task's score: over all items, or the mean over kinds; `by_kind` has the parts.

    numbers: what a benchmark publishes, under its own names and on its own scale.
    lower_is_better: whether it is a loss.
    items: the value of each item, in order, where they are kept; `items_of` says which items: scores of the same ones
    are compared item by item.
    partial: `120 of 2374` where not everything was scored; such a score is not the benchmark's.
    variant: what was done in another way than the benchmark's authors do it.
    seconds: how long it took, with what runs that were killed had done of it.
    """

    by_kind: dict[str, KindScore] = {}
    numbers: dict[str, KindScore] = {}
    lower_is_better: bool = False
    items: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = ()
    items_of: str | None = None
    partial: str | None = None
    variant: str | None = None
    seconds: NonNegativeFloat | None = None


class Change(Document):
    """The difference of two scores of the same task (new minus old) with its 95 % interval.

    paired: the interval is that of the differences of single items.  relative: the difference as a share of the old
    value, of losses.
    """

    value: float
    low: float
    high: float
    beyond_noise: bool
    paired: bool = False
    relative: float | None = None


def wilson(right: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion, or of a mean of values in 0..1 whose sum is `right`.

    It always holds right / n.  For such a mean it is wide rather than narrow: no values in 0..1 vary more.
    """
    if not 0 <= right <= n or n == 0:
        raise ValueError(f"{right} right of {n} is not a proportion")
    share, z2 = right / n, _Z * _Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def proportion(right: float, n: int, chance: float | None = None) -> KindScore:
    """`right` of `n` as a score."""
    low, high = wilson(right, n)
    return KindScore(value=right / n, low=low, high=high, n=n, chance=chance)


def grouped_proportion(groups: Sequence[tuple[int, int]]) -> KindScore:
    """The share of right answers among items in groups that resemble each other: several pictures of one prompt.

    groups: (right, n) of each.  Wilson's interval of as many independent items as have the same variance: never
    fewer than there are groups, never more than there are items.
    """
    right, n = sum(right for right, _ in groups), sum(n for _, n in groups)
    share, count = right / n, len(groups)
    spread = sum((right - share * n) ** 2 for right, n in groups) / n**2
    worth = float(count)
    if count > 1 and 0 < share < 1:
        worth = share * (1 - share) / (spread * count / (count - 1)) if spread > 0 else n
    effective = round(min(max(worth, count), n))
    low, high = wilson(share * effective, effective)
    return KindScore(value=share, low=min(low, share), high=max(high, share), n=n)


def mean_score(values: Sequence[float]) -> KindScore:
    """The mean of any values, with Student's interval; one value by itself says nothing of its spread."""
    n = len(values)
    value = sum(values) / n
    if n == 1:
        low, high = wilson(min(max(value, 0.0), 1.0), 1)
        return KindScore(value=value, low=min(low, value), high=max(high, value), n=n)
    half = _student(n - 1) * sqrt(sum((x - value) ** 2 for x in values) / (n - 1) / n)
    return KindScore(value=value, low=value - half, high=value + half, n=n)


def _student(freedom: int) -> float:
    """Student's quantile of 97.5 %: tabled where few values make it large, else Hill's series around the normal's."""
    few = (12.7062, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.306, 2.26216)
    if freedom <= len(few):
        return few[freedom - 1]
    z, z3, z5, z7 = _Z, _Z**3, _Z**5, _Z**7
    second, third = (5 * z5 + 16 * z3 + 3 * z) / 96, (3 * z7 + 19 * z5 + 17 * z3 - 15 * z) / 384
    return z + (z3 + z) / 4 / freedom + second / freedom**2 + third / freedom**3


def mean_of_kinds(parts: Mapping[str, KindScore]) -> Score:
    """The mean over kinds, each with the same weight, as a score."""
    value, low, high = _mean_with_interval(list(parts.values()))
    return Score(value=value, low=low, high=high, n=sum(part.n for part in parts.values()), by_kind=dict(parts))


def score_of_counts(
    counts: Mapping[str, tuple[float, int]],
    chance: Mapping[str, float] | None = None,
    average: Literal["items", "kinds"] = "items",
) -> Score:
    """A task's score from `counts[kind] = (right, n)`; grades in 0..1 add up like right answers.

    average: "items" weighs every item alike; "kinds" gives every kind the same weight, as GenEval does.
    The overall chance is averaged in the same way; None unless every kind has one.
    """
    if not counts:
        raise ValueError("a score needs at least one kind")
    known = chance or {}
    parts = {kind: proportion(right, n, known.get(kind)) for kind, (right, n) in counts.items()}
    total = sum(part.n for part in parts.values())
    even = average == "kinds"
    weights = [1 / len(parts) if even else part.n / total for part in parts.values()]
    levels = [part.chance for part in parts.values() if part.chance is not None]
    level = sum(w * c for w, c in zip(weights, levels, strict=True)) if len(levels) == len(parts) else None
    if even:
        value, low, high = _mean_with_interval(list(parts.values()))
    else:
        right = sum(right for right, _ in counts.values())
        value, (low, high) = right / total, wilson(right, total)
    return Score(value=value, low=low, high=high, n=total, chance=level, by_kind=parts)


def _mean_with_interval(parts: Sequence[KindScore]) -> tuple[float, float, float]:
    value = sum(part.value for part in parts) / len(parts)
    below = sqrt(sum((part.value - part.low) ** 2 for part in parts)) / len(parts)
    above = sqrt(sum((part.high - part.value) ** 2 for part in parts)) / len(parts)
    return value, max(min(part.low for part in parts), value - below), value + above


def change(new: KindScore, old: KindScore) -> Change:
    """new - old. Beyond noise when the 95 % interval of the difference leaves zero out.

    Where both keep the values of the same items, the interval is Student's of the items' differences. Else the two
    are taken as independent. Scored on the same items they are usually correlated, which makes the true interval
    narrower: that errs towards calling a small real change noise.
    """
    value = new.value - old.value
    if isinstance(new, Score) and isinstance(old, Score) and _same_items(new, old):
        found = mean_score([one - other for one, other in zip(new.items, old.items, strict=True)])
        relative = value / old.value if new.lower_is_better and old.value > 0 else None
        return Change(
            value=value, low=found.low, high=found.high, beyond_noise=found.low > 0 or found.high < 0, paired=True,
            relative=relative,
        )
    low = value - sqrt((new.value - new.low) ** 2 + (old.high - old.value) ** 2)
    high = value + sqrt((new.high - new.value) ** 2 + (old.value - old.low) ** 2)
    return Change(value=value, low=low, high=high, beyond_noise=low > 0 or high < 0)


def _same_items(new: Score, old: Score) -> bool:
    return len(new.items) > 1 and new.items_of == old.items_of and len(new.items) == len(old.items)


def worsening(new: Score, old: Score) -> float:
    """By how much `new` is worse than `old`, whichever direction is the better one."""
    return new.value - old.value if new.lower_is_better else old.value - new.value


def is_beyond_noise(new: KindScore, old: KindScore) -> bool:
    """Whether two scores differ by more than their uncertainty explains."""
    return change(new, old).beyond_noise


def headline(scores: dict[str, dict[Task, Score]]) -> dict[Task, Score]:
    """The score that stands for a task: of the first evaluation that gives one."""
    first: dict[Task, Score] = {}
    for of_one in scores.values():
        first |= {task: score for task, score in of_one.items() if task not in first}
    return first
