"""Partition the channels of a feed-forward into experts, and shared channels that are always active.

I channels; S shared; E experts of m = (I - S) / E channels each; n tokens.  A partition is (shared, experts):
channel indices, every channel exactly once.  Sizes are exact; random choices follow from the seed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Deal: TypeAlias = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]

ROUNDS = 25
PRICE_STEPS, PATIENCE = 300, 100


def importance_partition(importance: Sequence[float], experts: int, shared_count: int = 0) -> Deal:
    """By importance: the strongest are shared; the others are dealt in serpentine order (BAGEL-MoE).

    Experts keep their channels by falling importance.  Of equal ones the earlier channel goes first.
    """
    order = sorted(range(len(importance)), key=lambda j: (-importance[j], j))
    rest = order[shared_count:]
    rows = [rest[start : start + experts] for start in range(0, len(rest), experts)]
    dealt = [row if number % 2 == 0 else row[::-1] for number, row in enumerate(rows)]
    return tuple(order[:shared_count]), tuple(zip(*dealt, strict=True))


def random_partition(width: int, experts: int, shared_count: int, seed: str) -> Deal:
    """Random shared channels and experts, each in ascending order."""
    order = random.Random(seed).sample(range(width), width)
    return _dealt(order[:shared_count], torch.tensor(order[shared_count:]).view(experts, -1))


def contribution_partition(profiles: Tensor, experts: int, shared_count: int, seed: str) -> Deal:
    """By contribution: cluster channels that contribute at the same tokens.

    profiles (n, I): |h_j| * ||W_:j|| at each token.  Shared are those of the highest mean square; the others'
    profiles are clustered by k-means with clusters of one size.  Profiles keep their lengths: of unit length,
    weak channels spread over all experts, and half of the experts then lost twice as much of the output.
    """
    strength = profiles.double().square().mean(0)
    order = torch.argsort(strength, descending=True, stable=True)
    routed = order[shared_count:].sort().values
    rows = profiles.T[routed].float()
    # k-means knows no scale, float32 does.
    rows = rows / rows.max().clamp(min=torch.finfo(rows.dtype).tiny)
    labels = balanced_kmeans(rows, experts, seed)
    members = routed[torch.argsort(labels, stable=True)]
    return _dealt(order[:shared_count].tolist(), members.view(experts, -1))


def _dealt(shared: Sequence[int], experts: Tensor) -> Deal:
    return tuple(sorted(shared)), tuple(tuple(sorted(row)) for row in experts.tolist())


def balanced_kmeans(rows: Tensor, clusters: int, seed: str) -> Tensor:
    """Labels (r,) of `clusters` equally large groups of rows (r, n); r is a multiple of `clusters`."""
    centres = rows[_spread(rows, clusters, seed)]
    labels = torch.full((len(rows),), -1)
    prices = rows.new_zeros(clusters)
    for _ in range(ROUNDS):
        # With sizes given, |row|^2 and |centre|^2 add the same to every legal assignment.
        before, (labels, prices) = labels, balanced(-(rows @ centres.T), prices)
        if torch.equal(labels, before):
            break
        size = len(rows) // clusters
        centres = rows.new_zeros(centres.shape).index_add_(0, labels, rows) / size
    return labels


def _spread(rows: Tensor, count: int, seed: str) -> list[int]:
    """First centres far from each other (k-means++): each drawn by its squared distance to the nearest one."""
    draw = random.Random(seed)
    chosen = [draw.randrange(len(rows))]
    length = rows.square().sum(1)
    nearest = torch.full_like(length, torch.inf)
    while len(chosen) < count:
        last = chosen[-1]
        distance = length + length[last] - 2 * (rows @ rows[last])
        nearest = torch.minimum(nearest, distance.clamp(min=0))
        nearest[chosen] = 0
        upto = nearest.double().cumsum(0)
        at = int(torch.searchsorted(upto, draw.random() * float(upto[-1]), right=True))
        # Where all that is left equals some centre, any will do.
        chosen.append(at if at < len(rows) and at not in chosen else _first_free(chosen))
    return chosen


def _first_free(chosen: Sequence[int]) -> int:
    return next(j for j in range(len(chosen) + 1) if j not in chosen)


def balanced(cost: Tensor, prices: Tensor) -> tuple[Tensor, Tensor]:
    """Assign rows to columns of cost (r, E), r / E to each, at nearly the lowest total; (labels, prices).

    A price on each column rises while more want it than fit and falls otherwise (the dual of the assignment).
    Prices that balance exactly give the optimum; what is left over is moved where it costs least.
    """
    count, columns = cost.shape
    size = count // columns
    spread = float((cost.max() - cost.min()).clamp(min=1e-30))
    best, least, since = prices, torch.inf, 0
    for step in range(PRICE_STEPS):
        load = torch.bincount((cost + prices).argmin(1), minlength=columns)
        excess = (load - size).to(cost.dtype) / size
        over = float(excess.clamp(min=0).sum())
        if over < least:
            best, least, since = prices, over, step
        if over == 0 or step - since > PATIENCE:
            break
        prices = prices + 0.1 * spread / (1 + step) ** 0.75 * excess.clamp(max=2)
    return _repair(cost + best, size), best


def _repair(priced: Tensor, size: int) -> Tensor:
    """Move rows out of columns that hold too many, the cheapest move first, until each holds `size`."""
    labels = priced.argmin(1)
    load = torch.bincount(labels, minlength=priced.shape[1])
    extra = priced - priced.gather(1, labels[:, None])
    while bool((load > size).any()):
        movable = (load > size)[labels].nonzero().flatten()
        into = (load < size).nonzero().flatten()
        choices = extra[movable][:, into]
        at = int(choices.argmin())
        row, column = int(movable[at // len(into)]), int(into[at % len(into)])
        load[labels[row]] -= 1
        load[column] += 1
        labels[row] = column
        extra[row] = priced[row] - priced[row, column]
    return labels
