"""What the shipped passes share: exact counts, random scores, selection, and declined sites."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from umcompress.extend import BranchKind, Declined, PlanError, Scope

if TYPE_CHECKING:
    from umcompress.extend import FeedForwardSite, ModelGraph


def exact_ratio(ratio: float) -> Fraction:
    """The ratio as it was written: 0.7 is seven tenths, not the binary number next to it."""
    return Fraction(repr(float(ratio)))


def round_half_up(value: Fraction) -> int:
    """The nearest whole number; a half goes up."""
    return int((value + Fraction(1, 2)) // 1)


def kept_count(total: int, ratio: float, multiple_of: int = 1) -> int:
    """How many of `total` stay: the multiple nearest to ratio * total, a half going up.

    At least one multiple, and never more than `total`: where the nearest reaches it, everything stays.
    """
    if ratio == 1:
        return total
    multiples = round_half_up(exact_ratio(ratio) * total / multiple_of)
    return min(total, max(1, multiples) * multiple_of)


def dropped_count(total: int, keep_ratio: float) -> int:
    """How many of `total` go: (1 - keep_ratio) * total, a half goes up."""
    return round_half_up((1 - exact_ratio(keep_ratio)) * total)


def top_positions(scores: Sequence[float], count: int) -> tuple[int, ...]:
    """The positions of the `count` highest scores, ascending.  Of equal ones the earlier wins."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return tuple(sorted(order[:count]))


def random_scores(seed: int, site: str, component: str, count: int) -> list[float]:
    """Uniform scores that depend on the seed and the site's own name only."""
    draw = random.Random(f"{seed}/{component}/{site}")
    return [draw.random() for _ in range(count)]


def streams_together(sites: Iterable[FeedForwardSite]) -> Iterator[tuple[FeedForwardSite, ...]]:
    """Sites that are cut alike: those of one place in the streams of a block.  Others are alone."""
    blocks: dict[str, list[FeedForwardSite]] = {}
    for site in sites:
        blocks.setdefault(site.block, []).append(site)
    for found in blocks.values():
        components = [site.component for site in found]
        if len(set(components)) == len(components):
            yield tuple(found)
        else:
            yield from ((site,) for site in found)


def summed(scores: Sequence[Sequence[float]]) -> list[float]:
    """The sum of several rankings of the same units, each over its mean; a single one is left as it is."""
    if len(scores) == 1:
        return list(scores[0])
    means = [sum(one) / len(one) or 1.0 for one in scores]
    return [sum(value / mean for value, mean in zip(unit, means, strict=True)) for unit in zip(*scores, strict=True)]


def unmatched(
    graph: ModelGraph, scope: Scope, kind: BranchKind, sites: Iterable[Any], reason: str
) -> list[Declined]:
    """Branches of `kind` in scope at which no site was found, for `reason` or since they are experts already."""
    found = {(site.block, site.component) for site in sites}
    known = {(gap.path, gap.component): gap.reason for gap in graph.gaps() if gap.kind == kind}
    already = "its feed-forward is a mixture of experts already"
    return [
        Declined(
            site=branch.block,
            component=branch.component,
            reason=already if graph.is_mixture(branch) else known.get((branch.block, branch.component), reason),
        )
        for branch in graph.branches(kind, **scope.query())
        if (branch.block, branch.component) not in found
    ] + [one for one in _without_branch(graph, scope, kind) if (one.site, one.component) not in found]


def _without_branch(graph: ModelGraph, scope: Scope, kind: BranchKind) -> list[Declined]:
    """Blocks in which there may be such a branch, and none could be told apart."""
    inside = {block.path: block for block in graph.blocks(**scope.query())}
    gaps = [gap for gap in graph.gaps() if gap.path in inside and gap.component == scope.component]
    return [
        Declined(site=gap.path, component=gap.component, reason=gap.reason)
        for gap in gaps
        if (gap.kind == kind and all(branch.kind != kind for branch in inside[gap.path].branches))
        or (gap.kind == "branches" and not inside[gap.path].branches and (gap.path, kind) not in
            {(other.path, other.kind) for other in gaps})
    ]


def nothing_to_do(name: str, asked: str, declined: Sequence[Declined], do: str) -> PlanError:
    """The error for a step that would change nothing."""
    sites: dict[str, list[str]] = {}
    for refusal in declined:
        sites.setdefault(refusal.reason, []).append(refusal.site)
    reasons = [
        f"{same[0]}{f' and {len(same) - 1} more' if len(same) > 1 else ''}: {reason}"
        for reason, same in sites.items()
    ]
    return PlanError(asked=f"{name}: {asked}", found="; ".join(reasons) or "no such site", do=do)


def require_equal_counts(name: str, unit: str, sizes: Iterable[int], whole: bool) -> None:
    """PlanError unless every layer keeps the same number, as an ordinary configuration requires.

    whole: all layers are asked for already, and differ in what they start with.
    """
    counts = Counter(sizes)
    if len(counts) > 1:
        do = "leave `uniform` out" if whole else "set layers: all, or leave `uniform` out"
        listed = ", ".join(f"{size} in {count}" for size, count in sorted(counts.items()))
        raise PlanError(f"{name}: uniform: true", f"{unit} would differ by layer: {listed} of them", do)


def removing_ratios(total: int, units: str, multiple_of: int = 1) -> str:
    """A hint: which keep_ratio removes some of `total` units, and how many can stay."""
    most = (total - 1) // multiple_of
    if total == 1:
        return f"where there is one of the {units}, it stays; layer_drop takes the whole branch"
    if most == 0:
        return f"{total} {units} are no more than multiple_of: at most {total - 1} there"
    steps = f" in steps of {multiple_of}" if multiple_of > 1 else ""
    stay = f"{multiple_of} to {most * multiple_of}{steps}" if most > 1 else f"{multiple_of}"
    # Below this the nearest multiple is the largest one that is not everything.
    bound = (most + Fraction(1, 2)) * multiple_of / total
    return f"of {total} {units}, {stay} can stay: keep_ratio below {float(bound):.4g}"
