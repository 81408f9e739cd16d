"""Scores with their uncertainty; whether two differ by more than chance gives.

Intervals are at 95 %. A proportion has Wilson's interval; a mean of kinds and a difference of two scores
combine the intervals of their parts by MOVER (Zou and Donner, 2008), which needs only the parts' limits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, sqrt
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from umcompress.documents.base import Document, Task
from umcompress.documents.intervals import paired_interval, student, wilson
from umcompress.documents.numbers import ITEMS, Made, number_interval


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

    numbers: what a benchmark publishes, under its own names and on its own scale.  made: how they come of the items and
    of further `columns`, which have a value for each item, so that their changes are those of the same items.
    lower_is_better: whether it is a loss.
    items: the value of each item, where they are kept; `items_of` says which items: scores of the same ones are
    compared item by item.  item_groups: the score is the mean over kinds, whose items follow each other, so many each.
    items_are: grades, 0 (wrong) to 1 (right); any values; or nats, of which the score is exp(-mean).
    printed: the one of `numbers` that reports show in place of the value.
    partial: `120 of 2374` where not everything was scored; such a score is not the benchmark's.
    variant: what was done in another way than the benchmark's authors do it.
    seconds: how long it took, with what runs that were killed had done of it.
    """

    by_kind: dict[str, KindScore] = {}
    numbers: dict[str, KindScore] = {}
    made: dict[str, Made] = {}
    columns: dict[str, tuple[float, ...]] = {}
    lower_is_better: bool = False
    items: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = ()
    items_of: str | None = None
    item_groups: tuple[PositiveInt, ...] = ()
    items_are: Literal["values", "grades", "nats"] = "values"
    printed: str | None = None
    partial: str | None = None
    variant: str | None = None
    seconds: NonNegativeFloat | None = None


class Change(Document):
    """The difference of two scores of the same task (new minus old) with its 95 % interval.

    paired: the interval is that of the differences of single items.  relative: the difference as a share of the old
    value, of losses and perplexities.
    """

    value: float
    low: float
    high: float
    beyond_noise: bool
    paired: bool = False
    relative: float | None = None


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
    half = student(n - 1) * sqrt(sum((x - value) ** 2 for x in values) / (n - 1) / n)
    return KindScore(value=value, low=value - half, high=value + half, n=n)


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


def score_of_grades(
    grades: Mapping[str, Sequence[float]],
    items_of: str,
    chance: Mapping[str, float] | None = None,
    average: Literal["items", "kinds"] = "items",
) -> Score:
    """`score_of_counts` of single items: of each kind the grade of each item, 1 for right, 0 for wrong.

    items_of: says which items these are (a digest); scores of the same ones, given in the same order, are compared item
    by item, which makes the intervals of changes far narrower.
    """
    given = {kind: of_it for kind, of_it in grades.items() if of_it}
    score = score_of_counts({kind: (sum(of_it), len(of_it)) for kind, of_it in given.items()}, chance, average)
    flat = [[grade for of_it in given.values() for grade in of_it]]
    return with_grades(score, list(given.values()) if average == "kinds" else flat, items_of)


def with_grades(score: Score, groups: Sequence[Sequence[float]], items_of: str) -> Score:
    """The score with the grades of its items; it is the mean of the groups' means."""
    items = tuple(float(grade) for group in groups for grade in group)
    sizes = tuple(map(len, groups)) if len(groups) > 1 else ()
    kept = {"items": items, "items_of": items_of, "item_groups": sizes, "items_are": "grades"}
    return score.model_copy(update=kept)


def change(new: KindScore, old: KindScore) -> Change:
    """new - old. Beyond noise when the 95 % interval of the difference leaves zero out.

    Where both keep the values of the same items, the interval is that of the items' differences. Else the two are taken
    as independent. Scored on the same items they are usually correlated, which makes the true interval narrower: that
    errs towards calling a small real change noise.
    """
    value = new.value - old.value
    if isinstance(new, Score) and isinstance(old, Score) and _same_items(new, old):
        return _paired(new, old)
    low = value - sqrt((new.value - new.low) ** 2 + (old.high - old.value) ** 2)
    high = value + sqrt((new.high - new.value) ** 2 + (old.value - old.low) ** 2)
    return Change(value=value, low=low, high=high, beyond_noise=low > 0 or high < 0)


def _paired(new: Score, old: Score) -> Change:
    """The change with the interval of the items' differences."""
    groups = new.item_groups or (len(new.items),)
    _, low, high = paired_interval(_values(new), _values(old), groups, new.items_are == "grades")
    value = new.value - old.value
    relative = value / old.value if new.lower_is_better and old.value > 0 else None
    return Change(
        value=value, low=low, high=high, beyond_noise=low > 0 or high < 0, paired=True, relative=relative
    )


def _values(score: Score) -> Sequence[float]:
    """What each item adds to the value: of nats, of which that is exp(-mean), to first order."""
    if score.items_are != "nats":
        return score.items
    mean = sum(score.items) / len(score.items)
    return [score.value * (1 - (nats - mean)) for nats in score.items]


def _growth(nats: float) -> float:
    """By what share exp() of something grows that grows by so many nats; beyond what a number holds, the largest."""
    return exp(min(nats, 700.0)) - 1


def printed(score: Score) -> KindScore:
    """What reports show of a score: itself, or the published number that it names."""
    return score if score.printed is None else score.numbers[score.printed]


def printed_change(new: Score, old: Score) -> Change:
    """The change of what is printed of two scores: of a perplexity from the nats of the same windows."""
    if new.printed is None or new.printed != old.printed:
        return change(new, old)
    now, before = printed(new), printed(old)
    if not (_same_items(new, old) and new.items_are == "nats"):
        return change(now, before)
    _, low, high = paired_interval(new.items, old.items, new.item_groups or (len(new.items),), False)
    ends = [before.value * _growth(end) for end in (low, high)]
    return Change(
        value=now.value - before.value, low=ends[0], high=ends[1], beyond_noise=low > 0 or high < 0, paired=True,
        relative=now.value / before.value - 1,
    )  # fmt: skip


def with_numbers(
    score: Score, numbers: Mapping[str, KindScore], made: Mapping[str, Made],
    columns: Mapping[str, Sequence[float]] | None = None,
) -> Score:
    """The score with further numbers, and how they are made of its items; those that have no meaning are left out.

    columns: further values of each item, in the items' order.
    """
    given = {name: tuple(float(value) for value in values) for name, values in (columns or {}).items()}
    known = {name: made[name] for name in numbers if name in made}
    return score.model_copy(update={"numbers": dict(numbers), "made": known, "columns": given})


def number_changes(new: Score, old: Score) -> dict[str, Change]:
    """The changes of numbers that are made of the same items."""
    if not _same_items(new, old):
        return {}
    groups, graded = new.item_groups or (len(new.items),), new.items_are == "grades"
    found: dict[str, Change] = {}
    for name, made in new.made.items():
        if name not in old.numbers or old.made.get(name) != made:
            continue
        ends = number_interval(made, _columns(new), _columns(old), groups, graded)
        if ends is not None:
            value, beyond = new.numbers[name].value - old.numbers[name].value, ends[0] > 0 or ends[1] < 0
            found[name] = Change(value=value, low=ends[0], high=ends[1], beyond_noise=beyond, paired=True)
    return found


def _columns(score: Score) -> Mapping[str, Sequence[float]]:
    return {ITEMS: score.items, **score.columns}


def _same_items(new: Score, old: Score) -> bool:
    alike = (new.items_of, new.item_groups, new.items_are) == (old.items_of, old.item_groups, old.items_are)
    return alike and len(new.items) > 1 and len(new.items) == len(old.items)


def worsening(new: Score, old: Score) -> tuple[float, float, float]:
    """(By how much `new` is worse than `old`, whichever direction is the better one; ends of the 95 % interval.)"""
    found = change(new, old)
    if new.lower_is_better:
        return found.value, found.low, found.high
    return -found.value, -found.high, -found.low


def is_beyond_noise(new: KindScore, old: KindScore) -> bool:
    """Whether two scores differ by more than their uncertainty explains."""
    return change(new, old).beyond_noise


def headline(scores: dict[str, dict[Task, Score]]) -> dict[Task, Score]:
    """The score that stands for a task: of the first evaluation that gives one."""
    first: dict[Task, Score] = {}
    for of_one in scores.values():
        first |= {task: score for task, score in of_one.items() if task not in first}
    return first
