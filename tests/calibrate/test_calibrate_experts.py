"""Statistics for splitting feed-forwards equal direct float64 computations on the tokens themselves."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from pico_passes import Bench, bench, inputs_of
from torch import Tensor

from umcompress.calibrate import expert_sums, observers
from umcompress.calibrate.collect import collect
from umcompress.calibrate.declare import (
    ChannelActivation,
    ChannelSamples,
    ContributionMoments,
    RoutedMoments,
    Routing,
    Scope,
)
from umcompress.calibrate.statistics import Statistics, UndeclaredStatistic
from umcompress.errors import PlanError
from umcompress.extend import FeedForwardSite

EXPERTS = ((8, 1), (0, 5), (2, 9), (4, 6))
OFF_EXPERTS = (3, 7)  # always on


@pytest.fixture(scope="module")
def pico() -> Bench:
    return bench(calls=6)


def site_of(pico: Bench, stack: str | None = None) -> FeedForwardSite:
    return pico.graph.feed_forwards("understanding", stack=stack)[1]


def tokens(pico: Bench, site: FeedForwardSite) -> tuple[Tensor, Tensor, Tensor]:
    weight = pico.graph.weight(f"{site.consumer}.weight").double()
    return inputs_of(pico, site.producers[-1]), inputs_of(pico, site.consumer), weight


def router(pico: Bench, bias: bool = True) -> Routing:
    draw = torch.Generator().manual_seed(5)
    weight = torch.randn(4, 12, generator=draw, dtype=torch.float64)
    return Routing(EXPERTS, 2, weight, torch.randn(4, generator=draw, dtype=torch.float64) if bias else None)


def measured(pico: Bench, asked: ContributionMoments | RoutedMoments) -> Statistics:
    return collect(pico.graph, [ChannelActivation()], pico.feed).measure([asked])


@pytest.mark.parametrize("stack", [None, "vision"])
def test_contributions_are_moments_of_the_inputs_and_of_what_each_expert_writes(
    pico: Bench, stack: str | None
) -> None:
    site = site_of(pico, stack)
    asked = ContributionMoments({site.path: Routing(EXPERTS)})
    found = measured(pico, asked)[asked][site]
    x, h, weight = tokens(pico, site)
    norms = torch.stack([(h[:, list(e)] @ weight[:, list(e)].T).norm(dim=1) for e in EXPERTS], 1)
    x1 = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    torch.testing.assert_close(found.second, x1.T @ x1 / len(x), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(found.cross, x1.T @ norms / len(x), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(found.square, norms.square().mean(0), rtol=1e-11, atol=1e-13)
    assert found.tokens == len(x)


@pytest.mark.parametrize("bias", [True, False])
def test_routed_moments_are_those_of_the_channels_left_on(pico: Bench, bias: bool) -> None:
    site, routing = site_of(pico), router(pico, bias)
    asked = RoutedMoments({site.path: routing})
    found = measured(pico, asked)[asked][site]
    x, h, weight = tokens(pico, site)
    left, load = torch.zeros_like(h), [0] * 4
    for t in range(len(x)):
        scores = [float(routing.weight[e] @ x[t]) + (float(routing.bias[e]) if bias else 0) for e in range(4)]  # type: ignore[index]
        on = sorted(range(4), key=lambda e: -scores[e])[:2]
        for channel in (*OFF_EXPERTS, *(c for e in on for c in EXPERTS[e])):
            left[t, channel] = h[t, channel]
        for e in on:
            load[e] += 1
    missing = (h - left) @ weight.T
    direct = {
        "second": left.T @ left / len(x), "mean": left.mean(0), "cross": missing.T @ left / len(x),
        "lost": missing.mean(0), "load": torch.tensor(load, dtype=torch.float64) / len(x),
    }  # fmt: skip
    for name, expected in direct.items():
        torch.testing.assert_close(getattr(found, name), expected, rtol=1e-11, atol=1e-13)
    assert found.lost_square == pytest.approx(float(missing.square().sum(1).mean()))
    assert found.output_square == pytest.approx(float((h @ weight.T).square().sum(1).mean()))
    assert found.tokens == len(x) and min(load) > 0


def test_without_a_router_the_choice_is_that_of_equal_scores(pico: Bench) -> None:
    site = site_of(pico)
    asked = RoutedMoments({site.path: Routing(EXPERTS, 2)})
    load = measured(pico, asked)[asked][site].load
    on = torch.topk(torch.zeros(5, 4), 2).indices[0].tolist()
    assert [float(share) for share in load] == [float(e in on) for e in range(4)]


def test_wide_sites_are_summed_in_single_precision(pico: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    site = site_of(pico)
    asked = RoutedMoments({site.path: router(pico)})
    exact = measured(pico, asked)[asked][site]
    monkeypatch.setattr(expert_sums, "WIDE", 9)
    single = measured(pico, asked)[asked][site]
    assert single.second.dtype == torch.float32 and exact.second.dtype == torch.float64
    torch.testing.assert_close(single.second.double(), exact.second, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(single.cross.double(), exact.cross, rtol=1e-5, atol=1e-6)
    assert RoutedMoments.bytes_held(18944, 3584) == (18944**2 + 3584 * 18944) * 4
    assert RoutedMoments.bytes_held(512, 256) == (512**2 + 256 * 512) * 8


def test_samples_are_tokens_of_the_run_input_and_channels_together(pico: Bench) -> None:
    asked = ChannelSamples(Scope("understanding", "all"), tokens=7)
    found = collect(pico.graph, [asked], pico.feed)[asked]
    for site in pico.graph.feed_forwards("understanding", stack="all"):
        x, h, _ = tokens(pico, site)
        assert found[site].tokens == len(found[site].inputs) == 7
        for row, inner in zip(found[site].inputs, found[site].channels, strict=True):
            at = int((x - row).norm(dim=1).argmin())
            assert torch.equal(x[at], row) and torch.equal(h[at], inner)


def test_where_there_are_fewer_tokens_all_are_samples(pico: Bench) -> None:
    asked, site = ChannelSamples(), site_of(pico)
    found = collect(pico.graph, [asked], pico.feed)[asked][site]
    x, h, _ = tokens(pico, site)
    assert torch.equal(found.inputs, x) and torch.equal(found.channels, h) and found.tokens == len(x)


def test_the_draw_is_even_seeded_and_blind_to_how_tokens_come() -> None:
    rows = torch.arange(40.0)[:, None]

    def drawn(seed: int, *pieces: int) -> list[float]:
        draw = expert_sums.SampleDraw(10, seed)
        for x in torch.split(rows, list(pieces)):
            draw.add(x, 2 * x)
        found = draw.result()
        assert torch.equal(found.channels, 2 * found.inputs) and found.tokens == 10
        return sorted(found.inputs.flatten().tolist())

    assert drawn(0, 40) == drawn(0, 3, 30, 7) == drawn(0, *[1] * 40) != drawn(1, 40)
    counts = Counter(row for seed in range(400) for row in drawn(seed, 20, 20))
    # Each row is drawn in a quarter of 400 draws; five standard deviations are 5 * sqrt(75).
    assert all(abs(counts[row] - 100) < 5 * math.sqrt(75) for row in rows.flatten().tolist())


def test_pieces_of_a_long_call_are_summed(pico: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    site = site_of(pico)
    routed, written = RoutedMoments({site.path: router(pico)}), ContributionMoments({site.path: Routing(EXPERTS)})
    whole = collect(pico.graph, [routed, written], pico.feed)
    monkeypatch.setattr(expert_sums, "ROWS", 2)
    pieces = collect(pico.graph, [routed, written], pico.feed)
    torch.testing.assert_close(pieces[routed][site].cross, whole[routed][site].cross, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(pieces[written][site].second, whole[written][site].second, rtol=1e-12, atol=1e-14)
    assert pieces[routed][site].tokens == whole[routed][site].tokens
    assert observers.ROWS > 2


def test_measure_gives_what_is_asked_and_no_more(pico: Bench) -> None:
    one, other = pico.graph.feed_forwards("understanding")[:2]
    first = collect(pico.graph, [ChannelActivation()], pico.feed)
    asked = RoutedMoments({other.path: router(pico)})
    second = first.measure([asked])
    assert list(second[asked]) == [(other.path, "understanding")]
    with pytest.raises(KeyError, match="outside the declared scope"):
        second[asked][one]
    with pytest.raises(UndeclaredStatistic):
        second[ChannelActivation()]
    # Each declaration with tensors is a key of its own, though its content may equal another's.
    with pytest.raises(UndeclaredStatistic):
        second[RoutedMoments(asked.routing)]
    assert not any(module._forward_pre_hooks for module in pico.model.modules())


def test_no_further_sweep_without_data() -> None:
    with pytest.raises(PlanError, match="measuring more on the calibration data"):
        Statistics(dry=True).measure([ChannelActivation()])
