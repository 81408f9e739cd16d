"""Partitions into experts: every channel once, sizes exact, costs at the optimum, planted structure found."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from umcompress.passes import _partition
from umcompress.passes._partition import (
    balanced,
    balanced_kmeans,
    contribution_partition,
    importance_partition,
    random_partition,
)
from umcompress.passes.moe_split import MoeSplit, divisors


def once(deal: _partition.Deal, width: int, experts: int, shared: int) -> bool:
    """Every channel in one place, and places of the right sizes."""
    always, dealt = deal
    sizes = {len(expert) for expert in dealt}
    every = sorted(itertools.chain(always, *dealt))
    return every == list(range(width)) and len(always) == shared and sizes == {(width - shared) // experts}


SIZES = st.tuples(st.integers(2, 6), st.integers(1, 7), st.integers(0, 5))


@settings(max_examples=60)
@given(SIZES, st.integers(0, 10**6))
def test_every_channel_is_dealt_once(sizes: tuple[int, int, int], seed: int) -> None:
    experts, each, shared = sizes
    width = experts * each + shared
    profiles = torch.rand(5, width, generator=torch.Generator().manual_seed(seed))
    profiles[:, ::3] = 0  # dead channels
    for deal in (
        importance_partition(profiles.mean(0).tolist(), experts, shared),
        random_partition(width, experts, shared, str(seed)),
        contribution_partition(profiles, experts, shared, str(seed)),
    ):
        assert once(deal, width, experts, shared)


@given(SIZES, st.randoms(use_true_random=False))
def test_serpentine_is_the_deal_of_the_study(sizes: tuple[int, int, int], draw: object) -> None:
    experts, each, shared = sizes
    importance = [float(i) for i in range(experts * each + shared)]
    draw.shuffle(importance)  # type: ignore[attr-defined]
    order = sorted(range(len(importance)), key=lambda j: -importance[j])
    always, dealt = importance_partition(importance, experts, shared)
    assert always == tuple(order[:shared])
    for e, r in itertools.product(range(experts), range(each)):
        column = e if r % 2 == 0 else experts - 1 - e
        assert dealt[e][r] == order[shared + r * experts + column]


def test_serpentine_evens_out_strong_and_weak() -> None:
    assert importance_partition([8, 7, 6, 5, 4, 3, 2, 1], 2) == ((), ((0, 3, 4, 7), (1, 2, 5, 6)))
    assert importance_partition([1, 1, 1, 1], 2) == ((), ((0, 3), (1, 2)))


def test_lots_are_seeded() -> None:
    assert random_partition(30, 3, 6, "a") == random_partition(30, 3, 6, "a") != random_partition(30, 3, 6, "b")


def planted(tokens: int, blocks: int, each: int, noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Profiles in which tokens of a kind use the channels of one block, and the block of each channel."""
    draw = np.random.default_rng(seed)
    owner = draw.permutation(np.repeat(np.arange(blocks), each))
    kind = draw.integers(0, blocks, tokens)
    strength = np.where(kind[:, None] == owner, 1.0, noise) * draw.uniform(0.5, 1.5, (tokens, blocks * each))
    scale = draw.uniform(0.8, 1.25, blocks * each)
    return torch.tensor(1e-3 * strength * scale), torch.tensor(owner)


def test_channels_that_work_at_the_same_tokens_go_together() -> None:
    profiles, owner = planted(tokens=200, blocks=6, each=10, noise=0.3)
    shared, experts = contribution_partition(profiles, 6, 0, "0")
    assert shared == () and {tuple(sorted({int(owner[j]) for j in expert})) for expert in experts} == {
        (block,) for block in range(6)
    }


def test_strong_channels_go_with_strong_ones() -> None:
    """Equal patterns: a router can then leave the weak ones off, whatever the token."""
    draw = torch.Generator().manual_seed(0)
    strong = torch.randperm(40, generator=draw)[:20]
    profiles = torch.rand(100, 40, generator=draw, dtype=torch.float64)
    profiles[:, strong] += 9
    _, experts = contribution_partition(profiles, 4, 0, "0")
    assert sorted(len({*expert} & {*strong.tolist()}) for expert in experts) == [0, 0, 10, 10]


def held(profiles: Tensor, experts: tuple[tuple[int, ...], ...], active: int) -> float:
    """The share of all squared contributions that the best `active` experts of each token have."""
    energy = torch.stack([profiles[:, list(expert)].square().sum(1) for expert in experts], 1)
    return float(energy.topk(active, dim=1).values.sum() / energy.sum())


def test_clusters_hold_more_of_a_token_than_lots_do() -> None:
    profiles, _ = planted(tokens=300, blocks=8, each=16, noise=0.5)
    clustered = held(profiles, contribution_partition(profiles, 8, 0, "0")[1], 2)
    lots = [held(profiles, random_partition(128, 8, 0, str(seed))[1], 2) for seed in range(5)]
    assert clustered > max(lots) + 0.1


def test_shared_are_the_strongest_channels() -> None:
    profiles, _ = planted(tokens=100, blocks=2, each=5, noise=0.1)
    shared, experts = contribution_partition(profiles, 2, 4, "0")
    strength = profiles.square().mean(0)
    assert shared == tuple(sorted(strength.topk(4).indices.tolist()))
    assert once((shared, experts), 10, 2, 4)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 8), st.integers(1, 12), st.integers(0, 10**6))
def test_balanced_costs_little_more_than_the_optimum(columns: int, each: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    cost = torch.rand(columns * each, columns, generator=draw, dtype=torch.float64)
    labels, _ = balanced(cost, torch.zeros(columns, dtype=torch.float64))
    assert torch.bincount(labels, minlength=columns).tolist() == [each] * columns
    square = cost.repeat_interleave(each, dim=1).numpy()
    best = float(square[linear_sum_assignment(square)].sum())
    worst = float((1 - square)[linear_sum_assignment(1 - square)].sum())
    got = float(cost.gather(1, labels[:, None]).sum())
    assert got - best <= 0.15 * (columns * each - worst - best) + 1e-9


def test_at_real_sizes_balance_is_within_a_thousandth_of_the_optimum() -> None:
    draw = torch.Generator().manual_seed(0)
    centres = torch.rand(16, 64, generator=draw)
    rows = centres[torch.randint(16, (1024,), generator=draw)] + torch.rand(1024, 64, generator=draw)
    cost = -(rows / rows.norm(dim=1, keepdim=True) @ centres.T).double()
    labels, _ = balanced(cost, torch.zeros(16, dtype=torch.float64))
    square = cost.repeat_interleave(64, dim=1).numpy()
    best = float(square[linear_sum_assignment(square)].sum())
    assert float(cost.gather(1, labels[:, None]).sum()) - best <= 1e-3 * abs(best)


@pytest.mark.parametrize("rows", [torch.zeros(12, 3), torch.ones(12, 3), torch.eye(12)])
def test_rows_that_say_nothing_are_dealt_all_the_same(rows: Tensor) -> None:
    assert torch.bincount(balanced_kmeans(rows, 4, "0"), minlength=4).tolist() == [3] * 4


def test_clusters_are_seeded() -> None:
    profiles = torch.rand(40, 24, generator=torch.Generator().manual_seed(1))
    assert contribution_partition(profiles, 4, 0, "a") == contribution_partition(profiles, 4, 0, "a")
    assert len({contribution_partition(profiles, 4, 0, seed) for seed in "abcdef"}) > 1


def test_many_channels() -> None:
    profiles, owner = planted(tokens=256, blocks=16, each=128, noise=0.2)
    _, experts = contribution_partition(profiles, 16, 0, "0")
    assert all(len({int(owner[j]) for j in expert}) == 1 for expert in experts)


@pytest.mark.parametrize(
    ("share", "width", "experts", "count"),
    [(0.0, 512, 16, 0), (0.25, 512, 12, 128), (0.25, 512, 16, 128), (0.3, 18944, 16, 5680), (0.01, 512, 16, 16),
     (0.99, 512, 16, 496), (0.5, 10, 3, 4), (0.2, 48, 5, 8)],
)  # fmt: skip
def test_shared_channels_are_counted_so_that_the_others_divide(
    share: float, width: int, experts: int, count: int
) -> None:
    step = MoeSplit(experts=experts, active=1, shared=share)
    assert step.shared_count(width) == count and (width - count) % experts == 0


@given(st.integers(2, 400))
def test_divisors(width: int) -> None:
    assert divisors(width) == [count for count in range(2, width + 1) if width / count == width // count]
