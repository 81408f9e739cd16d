"""moe_split: routers and refits against plain least squares in float64, and plans that apply."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from pico import PicoFamily
from pico_passes import Bench, bench, inputs_of
from pydantic import ValidationError
from torch import Tensor

from umcompress.calibrate import kept_pairs
from umcompress.calibrate.collect import collect
from umcompress.documents.plan import SetTensors, SplitExperts
from umcompress.errors import PlanError
from umcompress.extend import (
    ChannelActivation,
    ContributionMoments,
    Contributions,
    Declaration,
    FeedForwardSite,
    RoutedMoments,
    Routing,
    Statistics,
)
from umcompress.graph.model_graph import trace_model
from umcompress.passes import _router
from umcompress.passes.moe_split import MoeSplit


@pytest.fixture(scope="module")
def pico() -> Bench:
    return bench(calls=8)


def split(**options: Any) -> MoeSplit:
    return MoeSplit.model_validate({"component": "understanding", "experts": 5, "active": 2, **options})


def weight(pico: Bench, path: str) -> Tensor:
    return pico.graph.weight(f"{path}.weight").double()


def edits_of(pico: Bench, step: MoeSplit) -> list[SplitExperts]:
    edits = pico.plan(step).plan.edits
    return [edit for edit in edits if isinstance(edit, SplitExperts)]


# -- what is asked for ----------------------------------------------------------------------------------------


def test_inner_layers_are_split_unless_others_are_named(pico: Bench) -> None:
    assert [edit.site for edit in edits_of(pico, split())] == ["layers.1.mlp"]
    assert [edit.site for edit in edits_of(pico, split(layers="0,2"))] == ["layers.0.mlp", "layers.2.mlp"]
    assert len(edits_of(pico, split(layers="all"))) == 3
    assert [e.site for e in edits_of(pico, split(component="generation", experts=3))] == ["layers.1.mlp_gen"]
    assert MoeSplit.model_json_schema()["properties"]["layers"]["default"] == "inner"
    with pytest.raises(PlanError, match="a stack of 2 blocks"):
        pico.plan(split(stack="vision"))
    with pytest.raises(PlanError, match="name one stack"):
        pico.plan(split(stack="all"))


def test_a_width_that_does_not_divide_names_the_counts_that_do(pico: Bench) -> None:
    with pytest.raises(PlanError, match=r"10 channels do not divide into 4[\s\S]*experts: 2 or 5 or 10;"):
        pico.plan(split(experts=4))
    assert len(edits_of(pico, split(experts=4, shared=0.2))[0].shared) == 2
    with pytest.raises(PlanError, match=r"10 experts and shared[\s\S]*at most 9"):
        pico.plan(split(experts=10, shared=0.2))


@pytest.mark.parametrize(
    "options",
    [{"experts": 1, "active": 1}, {"active": 6}, {"active": 0}, {"shared": 1.0}, {"shared": -0.1}, {"damping": 0},
     {"router": "mlp"}, {"partition": "weights"}, {"tokens": 0}, {"memory": 0}, {"layers": "outer"}],
)  # fmt: skip
def test_values_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        split(**options)


def test_only_what_is_read_is_declared() -> None:
    def names(**options: Any) -> list[str]:
        return [type(need).__name__ for need in split(**options).needs()]

    plain = {"router": "zero", "repair": "none"}
    assert names(partition="importance", **plain) == ["ChannelActivation"]
    assert names(partition="random", **plain) == []
    assert names(partition="contribution", **plain) == ["ChannelSamples"]
    assert names(partition="random", router="zero") == names(partition="random", repair="none") == ["ChannelSamples"]
    assert names(partition="random", router="zero", active=5) == []


def test_a_dry_run_has_the_right_counts(pico: Bench) -> None:
    for options in ({}, {"shared": 0.3, "experts": 3}, {"weighting": "softmax"}, {"router": "zero"}):
        step = split(**options)
        dry, real = step.plan(pico.graph, Statistics(dry=True)).plan, pico.plan(step).plan
        (planned,) = dry.edits
        done = real.edits[0]
        assert isinstance(planned, SplitExperts) and isinstance(done, SplitExperts)
        blank = {"experts": (), "shared": ()}
        assert planned.model_copy(update=blank) == done.model_copy(update=blank)
        assert [*map(len, planned.experts)] == [*map(len, done.experts)]
        assert len(planned.shared) == len(done.shared)
        assert dry.evidence[0].note == real.evidence[0].note.split(";")[0]


def test_what_is_split_is_not_split_again(pico: Bench) -> None:
    model = pico.apply(pico.plan(split()))
    again = Bench(model, trace_model(model, PicoFamily()), pico.feeds)
    with pytest.raises(PlanError, match=r"layers.1.mlp: it is split into experts"):
        again.plan(split())
    plan = again.plan(split(layers="all")).plan
    assert [refusal.site for refusal in plan.declined] == ["layers.1.mlp"]
    assert [edit.site for edit in plan.edits[:-1]] == ["layers.0.mlp", "layers.2.mlp"]  # type: ignore[union-attr]


# -- what becomes of the model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("partition", ["importance", "contribution", "random"])
@pytest.mark.parametrize("router", ["zero", "ridge"])
@pytest.mark.parametrize(("shared", "experts"), [(0.0, 5), (0.2, 4)])
def test_with_all_experts_active_nothing_changes(
    pico: Bench, partition: str, router: str, shared: float, experts: int
) -> None:
    step = split(partition=partition, router=router, shared=shared, experts=experts, active=experts, layers="all")
    model = pico.apply(pico.plan(step))
    for inputs in pico.feeds:
        for after, before in zip(model(*inputs), pico.model(*inputs), strict=True):
            torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-12)


def test_a_feed_forward_with_biases_keeps_its_output_too(pico: Bench) -> None:
    step = split(stack="vision", layers="all", active=5, weighting="softmax", router="zero")
    model = pico.apply(pico.plan(step))
    torch.testing.assert_close(model(*pico.feeds[0])[0], pico.model(*pico.feeds[0])[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("stack", [None, "vision"])
@pytest.mark.parametrize("weighting", ["one_plus_logit", "softmax"])
def test_the_split_model_runs_the_channels_that_were_calibrated(
    pico: Bench, weighting: str, stack: str | None
) -> None:
    """Its output is W' on the channels of the chosen experts, with the choice made by the fitted router."""
    step = split(weighting=weighting, stack=stack, layers="1", shared=0.2, experts=4)
    proposal = pico.plan(step)
    edit = proposal.plan.edits[0]
    assert isinstance(edit, SplitExperts) and edit.selector == (weighting == "one_plus_logit")
    module = pico.apply(proposal).get_submodule(edit.site)
    site = next(s for s in pico.graph.feed_forwards(stack="all") if s.path == edit.site)
    x, h = inputs_of(pico, site.producers[0]), inputs_of(pico, site.consumer)
    last = site.consumer.rpartition(".")[2]
    name = "selector" if edit.selector else "gate"
    scores = x @ proposal.tensors[f"{edit.site}.{name}.weight"].T
    scores = scores + proposal.tensors.get(f"{edit.site}.selector.bias", torch.tensor(0.0))
    expected = torch.zeros_like(x)
    stacked = proposal.tensors[f"{edit.site}.experts.{last}.weight"]
    always = proposal.tensors[f"{edit.site}.shared_expert.{last}.weight"]
    for t in range(len(x)):
        on = sorted(range(4), key=lambda e: -float(scores[t, e]))[:2]
        even = 1.0 if weighting == "one_plus_logit" else None
        soft = 2 * torch.softmax(scores[t, on], 0)
        for place, e in enumerate(on):
            expected[t] += (even or float(soft[place])) * (stacked[e] @ h[t, list(edit.experts[e])])
        expected[t] += always @ h[t, list(edit.shared)]
    expected += proposal.tensors.get(f"{edit.site}.bias", torch.tensor(0.0))
    with torch.no_grad():
        torch.testing.assert_close(module(x), expected, rtol=1e-9, atol=1e-11)
    if weighting == "softmax":
        assert float((torch.softmax(scores, 1) * 4 - 1).abs().max()) < 0.1


# -- routers ----------------------------------------------------------------------------------------------------


def contributions(x: Tensor, norms: Tensor) -> Contributions:
    x1 = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    return Contributions(x1.T @ x1 / len(x), x1.T @ norms / len(x), norms.square().mean(0), len(x))


def tokens(seed: int, count: int = 60, hidden: int = 7, experts: int = 4) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, hidden, generator=draw, dtype=torch.float64) + 0.5
    return x, torch.randn(count, experts, generator=draw, dtype=torch.float64).abs() + x[:, :experts] ** 2


def ridge_reference(x: Tensor, norms: Tensor, strength: float, intercept: bool) -> Tensor:
    """Predictions of min ||N - x B - a||^2 / T + strength ||B||^2 as one lstsq with extra rows."""
    inputs = torch.cat([x, torch.ones(len(x), int(intercept), dtype=x.dtype)], 1)
    extra = strength**0.5 * torch.eye(x.shape[1], inputs.shape[1], dtype=x.dtype)
    left = torch.cat([inputs / len(x) ** 0.5, extra])
    right = torch.cat([norms / len(x) ** 0.5, torch.zeros(x.shape[1], norms.shape[1], dtype=x.dtype)])
    return inputs @ torch.linalg.lstsq(left, right, driver="gelsd").solution


def centred(scores: Tensor) -> Tensor:
    return scores - scores.mean(1, keepdim=True)


@pytest.mark.parametrize("damping", [1e-6, 1e-2, 1.0])
def test_ridge_is_the_damped_fit_up_to_what_experts_share(damping: float) -> None:
    x, norms = tokens(0)
    found, bias, fitted = _router.ridge(contributions(x, norms), damping)
    strength = damping * float((x - x.mean(0)).square().mean())
    expected = ridge_reference(x, norms, strength, intercept=True)
    torch.testing.assert_close(x @ found.T + bias, centred(expected), rtol=1e-9, atol=1e-10)
    missed = (norms - expected).square().sum() / (norms - norms.mean(0)).square().sum()
    assert fitted == pytest.approx(1 - float(missed), abs=1e-9)


def test_softmax_logits_choose_like_the_fit_without_intercept_and_hardly_weight() -> None:
    x, norms = tokens(1)
    found, fitted = _router.ridge_logits(contributions(x, norms), 1e-2)
    expected = ridge_reference(x, norms, 1e-2 * float(x.square().mean()), intercept=False)
    assert torch.equal((x @ found.T).argsort(1), expected.argsort(1))
    weights = 2 * torch.softmax((x @ found.T).topk(2).values, 1)
    assert 0 < float((weights - 1).abs().max()) < 0.05
    missed = (norms - expected).square().sum() / (norms - norms.mean(0)).square().sum()
    assert fitted == pytest.approx(1 - float(missed), abs=1e-9)


def test_where_contributions_are_linear_the_oracle_experts_are_chosen() -> None:
    x, _ = tokens(2)
    draw = torch.Generator().manual_seed(9)
    norms = x @ torch.randn(7, 4, generator=draw, dtype=torch.float64) + 30
    found, bias, fitted = _router.ridge(contributions(x, norms), 1e-12)
    assert torch.equal((x @ found.T + bias).topk(2).indices, norms.topk(2).indices)
    assert fitted == pytest.approx(1.0, abs=1e-9)


def test_inputs_that_never_change_make_a_router_of_means() -> None:
    x, norms = torch.ones(20, 3, dtype=torch.float64), tokens(3, 20)[1]
    found, bias, _ = _router.ridge(contributions(x, norms), 1e-2)
    torch.testing.assert_close(x @ found.T + bias, centred(norms.mean(0)[None]).expand(20, -1), atol=1e-9, rtol=0)
    logits, _ = _router.ridge_logits(contributions(x * 0, norms), 1e-2)
    assert torch.equal(logits, torch.zeros(4, 3, dtype=torch.float64))


# -- the repair -------------------------------------------------------------------------------------------------


def routed(pico: Bench, site: FeedForwardSite, routing: Routing) -> tuple[Tensor, Tensor, Any]:
    """The channels of every token, those left on, and the moments that a sweep gives."""
    x, h = inputs_of(pico, site.producers[0]), inputs_of(pico, site.consumer)
    assert routing.weight is not None
    left = h.clone()
    for t, scores in enumerate(x @ routing.weight.T):
        for e in scores.argsort(descending=True)[routing.active :]:
            left[t, list(routing.experts[int(e)])] = 0
    asked = RoutedMoments({site.path: routing})
    return h, left, collect(pico.graph, [asked], pico.feed)[asked][site]


def random_routing(pico: Bench, seed: int = 0) -> Routing:
    draw = torch.Generator().manual_seed(seed)
    experts = ((0, 3), (1, 8), (2, 9), (4, 5))  # 6 and 7 are always on
    return Routing(experts, 2, torch.randn(4, 12, generator=draw, dtype=torch.float64))


@pytest.mark.parametrize("damping", [1e-6, 1e-2, 1.0])
@pytest.mark.parametrize("stack", [None, "vision"])
def test_the_refit_is_lstsq_on_the_channels_left_on(pico: Bench, stack: str | None, damping: float) -> None:
    site = pico.graph.feed_forwards("understanding", stack=stack)[1]
    h, left, moments = routed(pico, site, random_routing(pico))
    old, has_bias = weight(pico, site.consumer), stack == "vision"
    bias = pico.graph.weight(f"{site.consumer}.bias") if has_bias else None
    found, shifted, missing = _router.refit(old, bias, moments, damping)
    mean = left.mean(0) if has_bias else torch.zeros_like(left[0])
    target = (h - left) @ old.T
    strength = damping * float((left - mean).square().mean())
    root = len(h) ** 0.5
    offset = target.mean(0) if has_bias else torch.zeros_like(target[0])
    rows = torch.cat([(left - mean) / root, strength**0.5 * torch.eye(10, dtype=h.dtype)])
    wanted = torch.cat([(target - offset) / root, torch.zeros(10, len(old), dtype=h.dtype)])
    change = torch.linalg.lstsq(rows, wanted, driver="gelsd").solution.T
    torch.testing.assert_close(found, old + change, rtol=1e-7, atol=1e-9)
    assert (shifted is None) == (bias is None)
    after = left @ found.T + (0 if shifted is None else shifted)
    before = h @ old.T + (0 if bias is None else bias)
    assert missing == pytest.approx(float((after - before).square().sum(1).mean()), rel=1e-9)
    if has_bias:
        torch.testing.assert_close(after.mean(0), before.mean(0), rtol=1e-9, atol=1e-11)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"router": "zero"}, {"weighting": "softmax"}, {"shared": 0.2, "experts": 4}])
def test_the_refit_brings_the_output_nearer(options: dict[str, Any]) -> None:
    pico = bench(calls=20, hidden=12, width=20)
    error = {}
    for repair in ("none", "least_squares"):
        proposal = pico.plan(split(repair=repair, **options))
        module = pico.apply(proposal).layers[1].mlp
        x = inputs_of(pico, "layers.1.mlp.gate_proj")
        target = pico.model.layers[1].mlp(x)
        error[repair] = float((module(x) - target).square().sum() / target.square().sum())
    assert error["least_squares"] < 0.8 * error["none"]
    # What the evidence says is what happens; softmax weights are not quite even.
    (evidence,) = proposal.plan.evidence
    said = float(evidence.note.rpartition(", ")[2].split()[0])
    assert said == pytest.approx(error["least_squares"], abs=0.02 if options.get("weighting") else 6e-5)
    edit = proposal.plan.edits[0]
    assert isinstance(edit, SplitExperts) and sum(evidence.scores) == pytest.approx(edit.active)


def test_ridge_and_clusters_lose_less_than_lots_and_no_router() -> None:
    pico = bench(calls=20, hidden=12, width=24)
    step = {"experts": 6, "active": 3, "repair": "none", "layers": "all"}

    def error(**options: Any) -> float:
        model = pico.apply(pico.plan(split(**step, **options)))
        total = 0.0
        for index in range(3):
            x = inputs_of(pico, f"layers.{index}.mlp.gate_proj")
            target = pico.model.layers[index].mlp(x)
            total += float((model.layers[index].mlp(x) - target).square().sum() / target.square().sum())
        return total

    with torch.no_grad():
        routed_clusters, routed_lots = error(), error(partition="random")
        assert routed_clusters < error(partition="random", router="zero")
        assert routed_clusters < routed_lots


def test_sums_wait_for_another_sweep_where_memory_is_short(pico: Bench) -> None:
    def sweeps(memory: float) -> tuple[list[int], dict[str, Tensor]]:
        seen: list[int] = []
        step = split(layers="all", memory=memory)
        first = pico.measure(step)

        def more(asked: Any) -> Statistics:
            (declaration,) = asked
            assert isinstance(declaration, ContributionMoments | RoutedMoments)
            seen.append(len(declaration.routing))
            return first.measure(asked)

        statistics = Statistics(first.values, first.task, more=more)
        return seen, dict(step.plan(pico.graph, statistics).tensors)

    site_bytes = RoutedMoments.bytes_held(10, 12)
    seen, whole = sweeps(8.0)
    assert seen == [3, 3]
    for memory, expected in ((1e-9, [1, 1, 1, 1, 1, 1]), (2.1 * site_bytes / 1e9, [2, 1, 2, 1])):
        seen, parts = sweeps(memory)
        assert seen == expected
        assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)


def test_one_sweep_is_enough_where_what_it_sees_can_be_kept(pico: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The draw for the partition, the router's sums and those of the refit; without room, a sweep for each."""
    step, sweeps = split(layers="all"), Counter[float]()

    def planned(room: float, memory: float = math.inf) -> dict[str, Tensor]:
        def feed() -> None:
            sweeps[room] += 1
            pico.feed()

        monkeypatch.setattr(kept_pairs, "MOST", room)
        return dict(step.plan(pico.graph, collect(pico.graph, step.needs(), feed, memory=memory)).tensors)

    # Of three sites of 12 + 10 values a token, some 20 tokens in all.
    every, some, none = planned(1e6), planned(5e3), planned(0.0)
    assert sweeps == {1e6: 1, 5e3: 3, 0.0: 3}
    assert every.keys() == none.keys() == some.keys() and len(every) > 3
    assert all(torch.equal(every[name], value) and torch.equal(some[name], value) for name, value in none.items())
    # What is drawn a site at a time was never kept as a whole.
    planned(2e6, memory=1e-9)
    assert sweeps[2e6] > 3


def test_a_bfloat16_model_gets_bfloat16_tensors() -> None:
    pico = bench(dtype=torch.bfloat16)
    proposal = pico.plan(split())
    assert isinstance(proposal.plan.edits[-1], SetTensors)
    assert {tensor.dtype for tensor in proposal.tensors.values()} == {torch.bfloat16}
    assert pico.apply(proposal)(*pico.feeds[0])[0].isfinite().all()


@pytest.mark.parametrize("options", [{}, {"router": "zero", "partition": "random"}])
def test_activations_that_are_not_finite_are_refused(options: dict[str, Any]) -> None:
    broken = bench()
    broken.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("inf")
    with pytest.raises(PlanError, match="not finite"):
        broken.plan(split(**options))


def test_a_feed_forward_that_cannot_be_one_module_is_declined_with_the_reason() -> None:
    pico = bench()
    pico.graph.split_place = lambda site: "its first linears read different values"  # type: ignore[method-assign]
    with pytest.raises(PlanError, match=r"layers.1.mlp: its first linears read different values"):
        pico.plan(split())


def test_a_site_that_no_token_reached_names_the_task(pico: Bench) -> None:
    def vision_only() -> None:
        pico.model.vision[0](pico.feeds[0][1], None)

    step = split(component="generation", experts=3)
    needs: list[Declaration] = list(step.needs())
    assert ChannelActivation(step.scope()) not in needs
    with pytest.raises(PlanError, match="calibrate on generation"):
        step.plan(pico.graph, collect(pico.graph, needs, vision_only))
