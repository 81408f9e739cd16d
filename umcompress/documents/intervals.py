"""95 % intervals from numbers alone: of a proportion, and of the difference of two scores of the same items."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

Z = 1.959963984540054  # the normal quantile of 97.5 %


def wilson(right: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion, or of a mean of values in 0..1 whose sum is `right`.

    It always holds right / n.  For such a mean it is wide rather than narrow: no values in 0..1 vary more.
    """
    if not 0 <= right <= n or n == 0:
        raise ValueError(f"{right} right of {n} is not a proportion")
    share, z2 = right / n, Z * Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def student(freedom: int) -> float:
    """Student's quantile of 97.5 %: tabled where few values make it large, else Hill's series around the normal's."""
    few = (12.7062, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.306, 2.26216)
    if freedom <= len(few):
        return few[max(freedom, 1) - 1]
    z, z3, z5, z7 = Z, Z**3, Z**5, Z**7
    second, third = (5 * z5 + 16 * z3 + 3 * z) / 96, (3 * z7 + 19 * z5 + 17 * z3 - 15 * z) / 384
    return z + (z3 + z) / 4 / freedom + second / freedom**2 + third / freedom**3


def paired_interval(
    new: Sequence[float], old: Sequence[float], groups: Sequence[int], graded: bool
) -> tuple[float, float, float]:
    """(difference, low, high) of two scores of the same items, from the differences of single items.

    groups: how many items each kind has, one kind after the other; the score is the mean of the kinds' means, so
    the variance is that within the kinds.
    graded: items are grades from 0 to 1.  One item more that got better and one more that got worse are then added to
    the variance, as Bonett and Price do (Statistics in Medicine, 2012).  So no interval is empty because nothing
    happened to change, and of items that are right or wrong, zero is left out where McNemar's exact test rejects at
    5 %, or at 6.5 % at most.
    """
    differences = [one - other for one, other in zip(new, old, strict=True)]
    value = variance = one_item = 0.0
    start = 0
    for count in groups:
        part, start = differences[start : start + count], start + count
        mean, weight = sum(part) / count, 1 / len(groups) / count
        # A single item says nothing of the spread: it is taken to be as large as the difference itself.
        spread = sum((x - mean) ** 2 for x in part) * count / (count - 1) if count > 1 else part[0] ** 2
        value += mean / len(groups)
        variance += weight**2 * spread
        one_item += weight**2 * count / len(differences)
    if graded:
        variance += 2 * one_item
    half = student(len(differences) - len(groups)) * sqrt(variance)
    low, high = value - half, value + half
    return (value, max(low, -1.0), min(high, 1.0)) if graded else (value, low, high)
