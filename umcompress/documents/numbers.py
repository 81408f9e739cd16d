"""Numbers that a benchmark makes of its items: shares and F1 as sums over sums, points as means; and how they change.

A change is that of the same items: of a mean by the differences of single items, of anything else by drawing the items
again and again with what both models made of each, and making the number of every draw anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import TYPE_CHECKING

from pydantic import NonNegativeInt

from umcompress.documents.base import Document
from umcompress.documents.intervals import paired_interval, student

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

ITEMS = "items"
Columns = Mapping[str, Sequence[float]]
DRAWS, _CHUNK = 2000, 100


class Made(Document):
    """How a number comes of columns that have a value for each item: the mean over kinds of sum(top) / sum(bottom).

    top, bottom: columns with their weights (`items`: the items' own values); no bottom: the count of items.
    kinds: which of the score's kinds count, by their numbers; none: all.  pooled: their items are one kind.
    scale: what the mean is multiplied with.
    """

    top: dict[str, float] = {ITEMS: 1.0}
    bottom: dict[str, float] = {}
    kinds: tuple[NonNegativeInt, ...] = ()
    pooled: bool = False
    scale: float = 1.0


def number(made: Made, columns: Columns, groups: Sequence[int]) -> float | None:
    """The number; None where a sum below the line is zero, so that it has no meaning.

    groups: how many items each kind has, one kind after the other.
    """
    found = 0.0
    parts = _parts(made, columns, groups)
    for top, bottom, _ in parts:
        below = sum(bottom)
        if below == 0:
            return None
        found += sum(top) / below / len(parts)
    return found * made.scale


def number_interval(
    made: Made, new: Columns, old: Columns, groups: Sequence[int], graded: bool
) -> tuple[float, float] | None:
    """The 95 % interval of the difference of a number of the same items.  None where it has none.

    graded: the items are grades from 0 to 1.  One item more that got better and one more that got worse are then added
    to the variance, as `paired_interval` does, so that no interval is empty because nothing happened to change.
    """
    now, before = _parts(made, new, groups), _parts(made, old, groups)
    if not made.bottom:
        ours, theirs = ([x for top, _, _ in parts for x in top] for parts in (now, before))
        # A column counts what an item has of several things; a grade does not.
        sizes = [len(top) for top, _, _ in now]
        plain = made.top == {ITEMS: 1.0}
        _, low, high = paired_interval(ours, theirs, sizes, graded and plain)
        middle = (low + high) / 2
        extra = _one_item(made, before) if graded and not plain else 0.0
        half = sqrt(((high - low) / 2) ** 2 + student(sum(sizes) - len(sizes)) ** 2 * 2 * extra)
        return (middle - half) * made.scale, (middle + half) * made.scale
    return _by_drawing(made, now, before, graded)


# Of a kind: what its items have above and below the line, and how many of them are of which kind of the score.
Part = tuple[list[float], list[float], list[int]]


def _parts(made: Made, columns: Columns, groups: Sequence[int]) -> list[Part]:
    parts: list[Part] = []
    start = 0
    for kind, count in enumerate(groups):
        if not made.kinds or kind in made.kinds:
            here = slice(start, start + count)
            top = _weighted(made.top, columns, here)
            parts.append((top, _weighted(made.bottom, columns, here) if made.bottom else [1.0] * count, [count]))
        start += count
    if made.pooled and parts:
        return [([x for p in parts for x in p[0]], [x for p in parts for x in p[1]], [n for p in parts for n in p[2]])]
    return parts


def _weighted(weights: Mapping[str, float], columns: Columns, here: slice) -> list[float]:
    parts = [[weight * x for x in columns[name][here]] for name, weight in weights.items()]
    return [sum(values) for values in zip(*parts, strict=True)]


def _one_item(made: Made, parts: Sequence[Part]) -> float:
    """The variance of one item more that changes: the square of what it adds, each kind weighing as it has items."""
    total = sum(len(top) for top, _, _ in parts)
    return sum((_step(made, part) / len(parts)) ** 2 * len(part[0]) / total for part in parts if sum(part[1]))


def _step(made: Made, part: Part) -> float:
    """How far an item moves the number of its kind: from what the worst one adds to it to what the best one does."""
    top, bottom, _ = part
    below = sum(bottom)
    share = sum(top) / below
    adds = [one - share * other for one, other in zip(top, bottom, strict=True)]
    span = max(adds) - min(adds)
    # Where all items are alike, the most that an item can have above the line.
    return (span if span > 1e-12 else max(abs(weight) for weight in made.top.values())) / below


def _by_drawing(
    made: Made, now: Sequence[Part], before: Sequence[Part], graded: bool
) -> tuple[float, float] | None:
    import numpy as np

    draw = np.random.default_rng(0)
    differences = np.zeros(DRAWS)
    for one, other in zip(now, before, strict=True):
        columns = np.array([one[0], one[1], other[0], other[1]])
        sums = _drawn(draw, columns, one[2])
        with np.errstate(divide="ignore", invalid="ignore"):
            differences += (sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3]) / len(now)
    value = _difference(now, before)
    differences = differences[np.isfinite(differences)]
    if value is None or len(differences) < DRAWS / 2:
        return None
    low, high = (float(end) for end in np.quantile(differences, [0.025, 0.975]))
    extra = 1.96**2 * 2 * _one_item(made, before) if graded else 0.0
    low = value - sqrt(max(value - low, 0.0) ** 2 + extra)
    high = value + sqrt(max(high - value, 0.0) ** 2 + extra)
    return low * made.scale, high * made.scale


def _difference(now: Sequence[Part], before: Sequence[Part]) -> float | None:
    found = 0.0
    for one, other in zip(now, before, strict=True):
        if sum(one[1]) == 0 or sum(other[1]) == 0:
            return None
        found += (sum(one[0]) / sum(one[1]) - sum(other[0]) / sum(other[1])) / len(now)
    return found


def _drawn(draw: np.random.Generator, columns: Floats, counts: Sequence[int]) -> Floats:
    """(draws, columns): the sums of as many items as there are, drawn with repetition within each kind of the score."""
    import numpy as np

    found = np.zeros((DRAWS, len(columns)))
    start = 0
    for count in counts:
        part, start = columns[:, start : start + count].T, start + count
        # Right and wrong leave few that differ: how often each of them is drawn says all.
        unlike, often = np.unique(part, axis=0, return_counts=True)
        for first in range(0, DRAWS, _CHUNK):
            times = draw.multinomial(count, often / count, _CHUNK)
            found[first : first + _CHUNK] += times @ unlike
    return found
