"""Large statistics are measured a few sites at a time: the same values, as many sweeps as said, bounded memory."""

from __future__ import annotations

import gc
import inspect
import math
import random
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from laws import kinds, outputs
from pico import FAMILY, MODELS
from pico_on_disk import on_disk, stored
from pico_passes import Bench, assert_products, bench, inputs_of, streams_before
from tiny_bagel import write_recipe

from umcompress.calibrate import declare, observers
from umcompress.calibrate.collect import collect
from umcompress.calibrate.statistics import Statistics, UndeclaredStatistic
from umcompress.cli.main import main
from umcompress.errors import PlanError
from umcompress.extend import (
    Calibration,
    ChannelActivation,
    ChannelMoments,
    ChannelSamples,
    Declaration,
    ModelGraph,
    Plan,
    Scope,
    SetTensors,
)
from umcompress.extend.pass_base import Pass, Proposal
from umcompress.graph.model_graph import trace_model
from umcompress.models.streamed import streamed
from umcompress.passes.channel_prune import ChannelPrune
from umcompress.plan.memory import predicted
from umcompress.run import loop

LAYERS = 5
EVERY = Scope(stack="all")
MOMENTS, SAMPLES = ChannelMoments(EVERY), ChannelSamples(EVERY, tokens=5)


@pytest.fixture(scope="module")
def pico() -> Bench:
    return bench(depth=LAYERS)


class Counted:
    """A bench's feed that counts its sweeps."""

    def __init__(self, pico: Bench) -> None:
        self.pico, self.sweeps = pico, 0
        self.said: list[str] = []

    def __call__(self) -> None:
        self.sweeps += 1
        self.pico.feed()

    def measure(self, *needs: Declaration, sites: float = math.inf) -> Statistics:
        """With memory for so many sites of MOMENTS."""
        return collect(self.pico.graph, needs, self, memory=sites * held(self.pico) / 1e9, say=self.said.append)


def held(pico: Bench) -> int:
    return max(8 * site.width**2 for site in pico.graph.feed_forwards("understanding"))


def equal(one: Any, other: Any) -> bool:
    pairs = [(torch.as_tensor(value), torch.as_tensor(vars(other)[name])) for name, value in vars(one).items()]
    return all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("sites", [0.5, 1, 2, 3, 100])
def test_sites_in_order_are_those_of_one_sweep_and_cost_a_sweep_a_group(pico: Bench, sites: float) -> None:
    moments = ChannelMoments(Scope("understanding"))
    every, feed = pico.graph.feed_forwards("understanding"), Counted(pico)
    assert len(every) == LAYERS
    whole, found = collect(pico.graph, [moments], pico.feed), feed.measure(moments, sites=sites)
    for site in every:
        assert equal(found[moments][site], whole[moments][site])
        assert equal(found[moments][site], whole[moments][site])
    assert feed.sweeps == math.ceil(LAYERS / max(1, math.floor(sites))) == len(feed.said) + 1
    assert all(f"of {LAYERS} feed-forwards" in line for line in feed.said)
    h = inputs_of(pico, every[-1].consumer)
    assert_products(found[moments][every[-1]].second, h)


def test_what_is_small_comes_with_the_first_sweep_and_stays(pico: Bench) -> None:
    every, feed = pico.graph.feed_forwards("understanding"), Counted(pico)
    moments = ChannelMoments(Scope("understanding"))
    found = feed.measure(ChannelActivation(), moments, sites=2)
    for site in every:
        assert found[ChannelActivation()][site].tokens > 0
    assert feed.sweeps == 1
    for site in every:
        assert found[moments][site].tokens == found[ChannelActivation()][site].tokens
    assert feed.sweeps == math.ceil(LAYERS / 2)


def test_samples_are_drawn_alike_in_groups(pico: Bench) -> None:
    every, feed = pico.graph.feed_forwards(stack="all"), Counted(pico)
    whole = collect(pico.graph, [SAMPLES, MOMENTS], pico.feed)
    found = feed.measure(SAMPLES, MOMENTS, sites=1)
    for site in every:
        assert equal(found[SAMPLES][site], whole[SAMPLES][site])
        assert equal(found[MOMENTS][site], whole[MOMENTS][site])
    assert feed.sweeps == len(every)


def test_one_group_is_held_at_a_time(pico: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what was handed out before, nothing is alive while the next group is measured."""
    every, feed = pico.graph.feed_forwards("understanding"), Counted(pico)
    moments = ChannelMoments(Scope("understanding"))
    found = feed.measure(moments, sites=2)
    before: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    own = pico.feed

    def watched() -> None:
        gc.collect()
        alive.append(sum(ref() is not None for ref in before))
        own()

    monkeypatch.setattr(pico, "feed", watched)
    for site in every:
        before.append(weakref.ref(found[moments][site].second))
    assert alive == [0] * (math.ceil(LAYERS / 2) - 1)
    assert sum(ref() is not None for ref in before) <= 2


class Wandering(Pass):
    """A user's pass that reads sites in an order of its own, some of them twice."""

    name: ClassVar[str] = "wandering"

    def needs(self) -> Sequence[Declaration]:
        return [ChannelMoments(), ChannelActivation()]

    def plan(self, graph: ModelGraph, statistics: Statistics) -> Proposal:
        sites = [*graph.feed_forwards()] * 2
        random.Random(1).shuffle(sites)
        values = {f"{site.consumer}.weight": statistics[ChannelMoments()][site].second for site in sites}
        return Proposal(Plan(pass_name=self.name, edits=(SetTensors(names=tuple(values)),)), values)


def test_a_pass_that_reads_in_any_order_gets_the_same(pico: Bench) -> None:
    asked, feed = Wandering(), Counted(pico)
    found = asked.plan(pico.graph, feed.measure(*asked.needs(), sites=2)).tensors
    whole = pico.plan(asked).tensors
    assert found.keys() == whole.keys() and len(found) == len(pico.graph.feed_forwards())
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert feed.sweeps > math.ceil(len(found) / 2)


def test_the_shipped_pass_plans_the_same(pico: Bench) -> None:
    asked = ChannelPrune(component="understanding", keep_ratio=0.5, repair="least_squares")
    feed = Counted(pico)
    found = asked.plan(pico.graph, feed.measure(*asked.needs(), sites=1))
    whole = pico.plan(asked)
    assert found.plan == whole.plan
    assert all(torch.equal(found.tensors[name], value) for name, value in whole.tensors.items())
    assert feed.sweeps == len(whole.plan.evidence)


def test_remeasure_and_measure_keep_to_the_memory(pico: Bench) -> None:
    feed, again = Counted(pico), Counted(pico)
    found = collect(
        pico.graph, [ChannelMoments()], feed, rework=lambda edits: (pico.graph, again), memory=held(pico) / 1e9
    )
    _, other = found.remeasure([])
    further = found.measure([ChannelMoments()])
    sites = pico.graph.feed_forwards()
    for site in sites:
        assert equal(other[ChannelMoments()][site], further[ChannelMoments()][site])
    assert (feed.sweeps, again.sweeps) == (1 + len(sites), len(sites))


def test_errors_are_those_of_one_sweep(pico: Bench) -> None:
    def vision_only() -> None:
        for inputs in pico.feeds:
            streams_before(pico.model, *inputs)

    found = collect(pico.graph, [MOMENTS], vision_only, memory=1e-9)
    with pytest.raises(PlanError, match="calibrate on generation"):
        found[MOMENTS][pico.graph.feed_forwards(component="generation")[0]]
    with pytest.raises(UndeclaredStatistic):
        found[ChannelMoments()]
    scope = ChannelMoments(Scope("generation", layers=frozenset({1, 2})))
    feed = Counted(pico)
    narrow = feed.measure(scope, sites=1)
    outside = pico.graph.feed_forwards("understanding")[1]
    with pytest.raises(KeyError, match="outside the declared scope"):
        narrow[scope][outside]
    assert list(narrow[scope]) == [(f"layers.{index}.mlp_gen", "generation") for index in (1, 2)]
    assert len(narrow[scope]) == 2 and feed.sweeps == 1


@pytest.mark.parametrize("tile", [1, 3, 7, 64])
def test_a_matrix_in_tiles_is_the_whole_one(pico: Bench, monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    for module in (declare, observers):
        monkeypatch.setattr(module, "TILE", tile)
    site = pico.graph.feed_forwards()[0]
    h = inputs_of(pico, site.consumer)
    moments = collect(pico.graph, [ChannelMoments()], pico.feed)[ChannelMoments()][site]
    assert_products(moments.second, h)
    total = observers.MomentSum(site.width, torch.device("cpu"))
    kept = sum(part.numel() * part.element_size() for part in total.tiles)
    assert kept == MOMENTS.bytes_held(site.width, 1)
    assert kept == pytest.approx(8 * site.width * (site.width + min(tile, site.width)) / 2, rel=0.5)


def test_sums_are_exact_where_float32_is_not() -> None:
    """Channels of one large common part and small own ones: what is left after the mean is taken out."""
    draw = torch.Generator().manual_seed(0)
    single = (100 + 0.01 * torch.randn(4096, 40, generator=draw, dtype=torch.float64)).float()
    h = single.double()
    total = observers.MomentSum(40, torch.device("cpu"))
    for rows in single.split(256):
        total.add(rows)
    found = total.result().whole()
    exact = torch.from_numpy(((h - h.mean(0)).numpy().T @ (h - h.mean(0)).numpy()) / len(h))
    ours = found.second - torch.outer(found.mean, found.mean)
    plain = (single.T @ single / len(h)).double() - torch.outer(found.mean, found.mean)
    worst = [float((value - exact).abs().max() / exact.diagonal().mean()) for value in (ours, plain)]
    assert worst[0] < 1e-6 < 1 < worst[1]


def test_a_plan_predicts_the_largest_group_and_not_all(pico: Bench) -> None:
    asked = ChannelPrune(component="understanding", keep_ratio=0.5, repair="least_squares")
    found = []
    for sites in (100, 2.5, 0.1):
        calibration = Calibration(memory=sites * held(pico) / 1e9)
        found.append(predicted(pico.model, FAMILY, [(asked, calibration, 0.5)]))
    beyond = [0, (LAYERS - 2) * held(pico), (LAYERS - 1) * held(pico)]
    assert [found[0].in_memory - other.in_memory for other in found] == beyond
    assert [found[0].out_of_core - other.out_of_core for other in found] == beyond


@pytest.mark.parametrize("more", [(), ("--out-of-core",)])
def test_the_recipe_says_how_much(
    tiny_bagel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    asked: list[object] = []

    def noted(*given: Any, **named: Any) -> Statistics:
        asked.append(inspect.signature(collect).bind(*given, **named).arguments["memory"])
        raise PlanError("noted", "enough")

    monkeypatch.setattr(loop, "collect", noted)
    step = {"pass": "channel_prune", "component": "understanding", "keep_ratio": 0.5,
            "calibration": {"source": "scenes", "memory": 0.25}}  # fmt: skip
    recipe = write_recipe(tmp_path, tiny_bagel, step, evaluate=[])
    assert main(["apply", str(recipe), "-o", str(tmp_path / "out"), *more]) == 2
    assert asked == [0.25]


@kinds
def test_groups_out_of_core_are_those_of_the_model_in_memory(kind: str, tmp_path: Path) -> None:
    disk, memory, sweeps = on_disk(stored(kind, tmp_path)), MODELS[kind][0](), []

    def feed() -> None:
        sweeps.append(1)
        with streamed(disk.model, FAMILY, disk.read):
            outputs(disk.model, kind)

    found = collect(trace_model(disk.model, FAMILY, disk.read), [MOMENTS, SAMPLES], feed, memory=1e-9)
    def feed_in_memory() -> None:
        outputs(memory, kind)

    graph = trace_model(memory, FAMILY)
    wanted = collect(graph, [MOMENTS, SAMPLES], feed_in_memory)
    for site in graph.feed_forwards(stack="all"):
        for asked in (MOMENTS, SAMPLES):
            for name, value in vars(wanted[asked][site]).items():
                torch.testing.assert_close(getattr(found[asked][site], name), value, rtol=0, atol=1e-6)
    assert len(sweeps) == len(graph.feed_forwards(stack="all"))
    assert all(parameter.is_meta for parameter in disk.model.parameters())
