"""Statistics equal direct float64 computations on the plain model, and the sweep leaves no trace."""

from __future__ import annotations

import pytest
import torch
from pico_passes import Bench, assert_products, bench, inputs_of, mean_cosine, streams_before, walk
from torch import Tensor, nn

from umcompress.calibrate import observers
from umcompress.calibrate.collect import collect
from umcompress.calibrate.declare import (
    BlockSimilarity,
    BranchSimilarity,
    ChannelActivation,
    ChannelMoments,
    Declaration,
    HeadContribution,
    Scope,
)
from umcompress.calibrate.statistics import Statistics, UndeclaredStatistic
from umcompress.errors import PlanError
from umcompress.graph.model_graph import trace_model

EVERY: list[Declaration] = [
    BlockSimilarity(),
    BranchSimilarity("attention"),
    BranchSimilarity("feed_forward"),
    ChannelActivation(),
    ChannelMoments(),
    HeadContribution(),
]
STREAM = {"understanding": 0, "generation": 1}


@pytest.fixture(scope="module")
def pico() -> Bench:
    return bench()


@pytest.fixture(scope="module")
def measured(pico: Bench) -> Statistics:
    return collect(pico.graph, EVERY, pico.feed)


@pytest.mark.parametrize("component", ["understanding", "generation"])
@pytest.mark.parametrize("unit", ["block", "attention", "feed_forward"])
def test_similarity_is_the_cosine_across_the_residual(
    pico: Bench, measured: Statistics, unit: str, component: str
) -> None:
    span = {"block": (0, 2), "attention": (0, 1), "feed_forward": (1, 2)}[unit]
    trails = [walk(pico.model, inputs) for inputs in pico.feeds]
    for index, block in enumerate(pico.graph.blocks()):
        pairs = [tuple(trail[index][at][STREAM[component]] for at in span) for trail in trails]
        expected = mean_cosine(pairs)  # type: ignore[arg-type]
        if unit == "block":
            value = measured[BlockSimilarity()][block, component]
        else:
            site = next(b for b in block.branches if (b.kind, b.component) == (unit, component))
            value = measured[BranchSimilarity(unit)][site]  # type: ignore[arg-type]
        assert value.cosine == pytest.approx(expected, abs=1e-12)
        assert value.tokens == sum(len(pair[0]) for pair in pairs)


def test_channels_are_means_over_all_tokens(pico: Bench, measured: Statistics) -> None:
    for site in pico.graph.feed_forwards():
        h = inputs_of(pico, site.consumer)
        activation, moments = measured[ChannelActivation()][site], measured[ChannelMoments()][site]
        torch.testing.assert_close(activation.mean_abs, h.abs().mean(0), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(activation.mean, h.mean(0), rtol=1e-12, atol=1e-14)
        assert_products(moments.second, h)
        torch.testing.assert_close(moments.mean, h.mean(0), rtol=1e-12, atol=1e-14)
        assert activation.tokens == moments.tokens == len(h)


def test_head_contribution_is_the_norm_of_what_a_head_writes(pico: Bench, measured: Statistics) -> None:
    for site in pico.graph.attentions(stack="all")[:-2]:
        x, weight = inputs_of(pico, site.output), pico.graph.weight(f"{site.output}.weight")
        size, per = site.head_dim, site.query_heads_per_group
        written = [x[:, h * size : (h + 1) * size] @ weight[:, h * size : (h + 1) * size].T
                   for h in range(site.query_heads)]  # fmt: skip
        heads = torch.stack([w.norm(dim=1).mean() for w in written])
        groups = torch.stack(
            [sum(written[g * per : (g + 1) * per]).norm(dim=1).mean() for g in range(site.key_value_groups)]  # type: ignore[union-attr]
        )
        value = measured[HeadContribution()][site]
        torch.testing.assert_close(value.query_heads, heads, rtol=1e-10, atol=0)
        torch.testing.assert_close(value.key_value_groups, groups, rtol=1e-10, atol=0)


def test_the_model_is_untouched_even_when_the_feed_fails(pico: Bench) -> None:
    before = {name: tensor.clone() for name, tensor in pico.model.state_dict().items()}
    classes = [type(module) for module in pico.model.modules()]
    outputs = pico.model(*pico.feeds[0])

    def fails() -> None:
        pico.feed()
        raise RuntimeError("out of data")

    with pytest.raises(RuntimeError, match="out of data"):
        collect(pico.graph, EVERY, fails)
    assert [type(module) for module in pico.model.modules()] == classes
    assert not any(module._forward_pre_hooks for module in pico.model.modules())
    after = pico.model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert all(map(torch.equal, pico.model(*pico.feeds[0]), outputs))


def test_pieces_of_a_long_call_are_summed(
    pico: Bench, measured: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observers, "ROWS", 2)
    monkeypatch.setattr(observers, "PRODUCT_ROWS", 2)
    again = collect(pico.graph, EVERY, pico.feed)
    site = pico.graph.feed_forwards()[0]
    for name, bar in (("second", 1e-6), ("mean", 1e-12)):
        one, other = (getattr(found[ChannelMoments()][site], name) for found in (again, measured))
        torch.testing.assert_close(one, other, rtol=bar, atol=bar / 100)
    assert again[ChannelMoments()][site].tokens == measured[ChannelMoments()][site].tokens


def test_sums_are_double_also_for_a_bfloat16_model() -> None:
    pico = bench(dtype=torch.bfloat16)
    measured = collect(pico.graph, [ChannelMoments()], pico.feed)
    site = pico.graph.feed_forwards()[0]
    h = inputs_of(pico, site.consumer)
    assert_products(measured[ChannelMoments()][site].second, h)


def test_an_undeclared_read_raises(pico: Bench) -> None:
    measured = collect(pico.graph, [ChannelActivation()], pico.feed)
    with pytest.raises(UndeclaredStatistic, match=r"ChannelMoments.*was not declared.*ChannelActivation"):
        measured[ChannelMoments()]
    with pytest.raises(UndeclaredStatistic):
        measured[ChannelActivation(Scope(component="generation"))]


def test_a_scope_measures_no_more_than_asked(pico: Bench) -> None:
    scope = Scope("generation", layers=frozenset({1}))
    measured = collect(pico.graph, [ChannelActivation(scope), BlockSimilarity(scope)], pico.feed)
    assert list(measured[ChannelActivation(scope)]) == [("layers.1.mlp_gen", "generation")]
    assert list(measured[BlockSimilarity(scope)]) == [("layers.1", "generation")]
    with pytest.raises(KeyError, match="outside the declared scope"):
        measured[ChannelActivation(scope)][pico.graph.feed_forwards()[0]]


def test_sites_that_no_token_reached_name_the_task_that_reaches_them(pico: Bench) -> None:
    def vision_only() -> None:
        for inputs in pico.feeds:
            streams_before(pico.model, *inputs)

    asked = ChannelActivation(Scope(stack="all"))
    measured = collect(pico.graph, [asked], vision_only, task="understanding")
    assert measured[asked][pico.graph.feed_forwards(stack="vision")[0]].tokens > 0
    with pytest.raises(PlanError, match="calibrate on generation"):
        measured[asked][pico.graph.feed_forwards(component="generation")[0]]
    measured = collect(pico.graph, [asked], vision_only, task="generation")
    with pytest.raises(PlanError, match="calibrate on understanding"):
        measured[asked][pico.graph.feed_forwards(component="understanding")[0]]


def test_nothing_declared_feeds_nothing(pico: Bench) -> None:
    def never() -> None:
        raise AssertionError("fed")

    assert not collect(pico.graph, [], never).values


def test_results_are_frozen(measured: Statistics, pico: Bench) -> None:
    value = measured[ChannelActivation()][pico.graph.feed_forwards()[0]]
    with pytest.raises(AttributeError):
        value.tokens = 0
    with pytest.raises(TypeError):
        measured[ChannelActivation()]["x"] = value  # type: ignore[index]


def test_measuring_again_needs_somebody_who_can_edit_a_copy(measured: Statistics) -> None:
    with pytest.raises(PlanError, match="cannot edit a copy"):
        measured.remeasure([])


def test_the_observed_run_computes_the_same(pico: Bench) -> None:
    expected = pico.model(*pico.feeds[0])
    seen = []
    collect(pico.graph, EVERY, lambda: seen.append(pico.model(*pico.feeds[0])))
    assert all(map(torch.equal, seen[0], expected))


class InPlace(nn.Module):
    """A block that adds to its stream in place: what came in is gone by the time of the add."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(6), nn.LayerNorm(6)
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.second_up, self.second_down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = x.add_(self.down(self.up(self.norm1(x)).relu()))
        return x.add_(self.second_down(self.second_up(self.norm2(x)).relu()))


class InPlaceFamily:
    main_stack = "only"

    def stacks(self, model: nn.Module) -> dict[str, str]:
        return {"only": "0"}

    def component_of(self, path: str) -> str:
        return "understanding"


def test_a_stream_that_is_added_to_in_place_is_seen_as_it_came_in() -> None:
    torch.manual_seed(0)
    block = InPlace().double()
    graph = trace_model(nn.Sequential(nn.ModuleList([block])), InPlaceFamily())
    x = torch.randn(5, 6, dtype=torch.float64)
    with torch.no_grad():
        middle = x + block.down(block.up(block.norm1(x)).relu())
        end = middle + block.second_down(block.second_up(block.norm2(middle)).relu())

    def feed() -> None:
        block(x.clone())

    measured = collect(graph, [BlockSimilarity()], feed)
    (site,) = graph.blocks()
    assert measured[BlockSimilarity()][site, "understanding"].cosine == pytest.approx(mean_cosine([(x, end)]))
