"""channel_prune: scores and repairs from plain float64, allocation by brute force, and plans that apply."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pico import GatedMLP, PicoFamily, PicoUnified, spread
from pico_passes import Bench, bench, inputs_of
from pydantic import ValidationError
from torch import Tensor

from umcompress.documents.plan import KeepChannels, SetTensors
from umcompress.errors import PlanError
from umcompress.extend import FeedForwardSite, Statistics
from umcompress.graph.model_graph import trace_model
from umcompress.passes import _reconstruction, _repair
from umcompress.passes.channel_prune import ChannelPrune, global_counts


@pytest.fixture(scope="module")
def pico() -> Bench:
    return bench()


def prune(**options: Any) -> ChannelPrune:
    return ChannelPrune.model_validate({"component": "understanding", "keep_ratio": 0.5, **options})


def weight(pico: Bench, path: str) -> Tensor:
    return pico.graph.weight(f"{path}.weight").double()


def direct(pico: Bench, site: FeedForwardSite, score: str) -> list[float]:
    """Channel by channel."""
    h, down = inputs_of(pico, site.consumer), weight(pico, site.consumer)
    scores = []
    for j in range(site.width):
        value = float(down[:, j].norm())
        if score == "activation":
            value *= float(h[:, j].abs().sum()) / len(h)
        else:
            for producer in site.producers:
                value *= float(weight(pico, producer)[j].norm())
        scores.append(value)
    return scores


def best(scores: list[float], count: int) -> tuple[int, ...]:
    return tuple(sorted(sorted(range(len(scores)), key=lambda j: -scores[j])[:count]))


@pytest.mark.parametrize("component", ["understanding", "generation"])
@pytest.mark.parametrize("score", ["activation", "magnitude"])
def test_the_strongest_channels_stay(pico: Bench, score: str, component: str) -> None:
    plan = pico.plan(prune(component=component, score=score, stack="all")).plan
    sites = pico.graph.feed_forwards(component=component, stack="all")
    assert len(plan.edits) == len(sites) == (5 if component == "understanding" else 3)
    for site, edit, evidence in zip(sites, plan.edits, plan.evidence, strict=True):
        scores = direct(pico, site, score)
        assert evidence.scores == pytest.approx(scores, rel=1e-11)
        assert edit == KeepChannels(site=site.path, keep=best(scores, site.width // 2))


class Twins(PicoUnified):
    """Streams of one width, as in BAGEL."""

    def __init__(self) -> None:
        super().__init__()
        for block in self.layers:
            block.mlp_gen = GatedMLP(12, 10)


@pytest.fixture(scope="module")
def twins() -> Bench:
    model = spread(Twins(), 3).double()
    return Bench(model, trace_model(model, PicoFamily()), bench().feeds)


def over_mean(scores: list[float]) -> list[float]:
    return [score / (sum(scores) / len(scores)) for score in scores]


def test_both_streams_keep_the_channels_that_matter_to_their_sum(twins: Bench) -> None:
    """Each stream's scores over their mean: else the stream with the larger numbers would decide for both."""
    plan = twins.plan(prune(component="shared")).plan
    kept = {edit.site: edit.keep for edit in plan.edits if isinstance(edit, KeepChannels)}
    sites = twins.graph.feed_forwards()
    assert len(sites) == len(kept) == 6
    alone = {site.path: best(direct(twins, site, "activation"), site.width // 2) for site in sites}
    for block in {site.block for site in sites}:
        one, other = [site for site in sites if site.block == block]
        assert {one.component, other.component} == {"understanding", "generation"}
        pair = [over_mean(direct(twins, site, "activation")) for site in (one, other)]
        together = [a + b for a, b in zip(*pair, strict=True)]
        assert kept[one.path] == kept[other.path] == best(together, one.width // 2)
    assert kept != alone


def test_streams_may_keep_their_own_channels_at_one_width(twins: Bench) -> None:
    plan = twins.plan(prune(component="shared", couple="width")).plan
    for edit, site in zip(plan.edits, twins.graph.feed_forwards(), strict=True):
        assert edit == KeepChannels(site=site.path, keep=best(direct(twins, site, "activation"), site.width // 2))


@pytest.mark.parametrize("couple", ["channels", "width"])
def test_a_global_ranking_leaves_the_streams_of_a_block_one_width(twins: Bench, couple: str) -> None:
    plan = twins.plan(prune(component="shared", couple=couple, allocation="global", keep_ratio=0.6)).plan
    counts = {edit.site: len(edit.keep) for edit in plan.edits if isinstance(edit, KeepChannels)}
    sites = twins.graph.feed_forwards()
    kept = {site.path: counts.get(site.path, site.width) for site in sites}
    for block in {site.block for site in sites}:
        assert len({kept[site.path] for site in sites if site.block == block}) == 1
    assert len(set(kept.values())) > 1


def test_streams_of_unequal_width_are_not_cut_together(pico: Bench) -> None:
    narrow = pico.apply(pico.plan(prune()))
    with pytest.raises(PlanError, match="unequal width"):
        prune(component="shared", score="magnitude").plan(trace_model(narrow, PicoFamily()), Statistics())


def test_every_channel_has_its_own_activation(pico: Bench) -> None:
    """A mean over both dimensions would leave the column norms alone to decide."""
    site = pico.graph.feed_forwards()[0]
    evidence = pico.plan(prune()).plan.evidence[0]
    ratios = [
        s / float(n) for s, n in zip(evidence.scores, weight(pico, site.consumer).norm(dim=0), strict=True)
    ]
    assert len({round(ratio, 9) for ratio in ratios}) == site.width


def test_random_is_seeded_by_site(pico: Bench) -> None:
    step = prune(score="random", seed=2)
    assert not step.needs()
    assert pico.plan(step) == pico.plan(step)
    assert pico.plan(prune(score="random", seed=2, layers="2")).plan.edits == pico.plan(step).plan.edits[2:]
    assert len({pico.plan(prune(score="random", seed=seed)).plan.edits for seed in range(4)}) > 1


def test_widths_are_multiples(pico: Bench) -> None:
    for ratio, expected in ((0.5, 4), (0.61, 8), (0.6, 8), (0.01, 4)):
        edits = pico.plan(prune(keep_ratio=ratio, multiple_of=4)).plan.edits
        assert [len(edit.keep) for edit in edits] == [expected] * 3  # type: ignore[union-attr]


def test_refusals_and_empty_selections(pico: Bench) -> None:
    with pytest.raises(PlanError, match=r"layers.0.mlp and 2 more: keep_ratio 0.97 of 10 channels keeps"):
        pico.plan(prune(keep_ratio=0.97))
    with pytest.raises(PlanError, match="in multiples of 16 keeps all of them"):
        pico.plan(prune(multiple_of=16))
    uneven = bench(width=7)
    uneven.model.layers[0].mlp = pico.model.layers[0].mlp
    uneven = Bench(uneven.model, trace_model(uneven.model, PicoFamily()), uneven.feeds)
    plan = uneven.plan(prune(keep_ratio=0.75, multiple_of=8)).plan
    assert [len(edit.keep) for edit in plan.edits] == [8]  # type: ignore[union-attr]
    assert [refusal.site for refusal in plan.declined] == ["layers.1.mlp", "layers.2.mlp"]
    mixed = bench()
    known = mixed.graph.feed_forwards
    mixed.graph.feed_forwards = lambda **query: known(**query)[1:]  # type: ignore[method-assign]
    assert [refusal.site for refusal in mixed.plan(prune()).plan.declined] == ["layers.0"]


def test_keeping_everything_is_the_identity(pico: Bench) -> None:
    step = prune(keep_ratio=1.0, repair="least_squares", multiple_of=4)
    proposal = pico.plan(step)
    assert not step.needs() and proposal.plan.edits == () and not proposal.tensors


def test_the_removed_mean_goes_into_a_new_bias(pico: Bench) -> None:
    proposal = pico.plan(prune(repair="bias"))
    site, edit = pico.graph.feed_forwards()[0], proposal.plan.edits[0]
    assert isinstance(edit, KeepChannels) and edit.bias
    h, down = inputs_of(pico, site.consumer), weight(pico, site.consumer)
    removed = [j for j in range(site.width) if j not in edit.keep]
    lost = (h[:, removed] @ down[:, removed].T).mean(0)
    torch.testing.assert_close(proposal.tensors[f"{site.consumer}.bias"], lost, rtol=1e-11, atol=1e-13)
    assert proposal.plan.edits[-1] == SetTensors(
        names=tuple(f"layers.{i}.mlp.down_proj.bias" for i in range(3))
    )
    model = pico.apply(proposal)
    assert torch.equal(model.layers[0].mlp.down_proj.bias, proposal.tensors[f"{site.consumer}.bias"])


def test_the_removed_mean_is_added_to_a_bias_that_is_there(pico: Bench) -> None:
    proposal = pico.plan(prune(stack="vision", repair="bias"))
    edit = proposal.plan.edits[0]
    assert isinstance(edit, KeepChannels)
    h, down = inputs_of(pico, "vision.0.mlp.fc2"), weight(pico, "vision.0.mlp.fc2")
    removed = [j for j in range(10) if j not in edit.keep]
    expected = pico.model.vision[0].mlp.fc2.bias + (h[:, removed] @ down[:, removed].T).mean(0)
    torch.testing.assert_close(
        proposal.tensors["vision.0.mlp.fc2.bias"], expected.detach(), rtol=1e-11, atol=1e-13
    )


def augmented(h: Tensor, down: Tensor, kept: tuple[int, ...], strength: float) -> Tensor:
    """min ||h_P W_P' - h_S D'||^2 / T + strength ||D||^2 as one lstsq with extra rows; returns W_S + D."""
    keep, removed = list(kept), [j for j in range(h.shape[1]) if j not in kept]
    root = len(h) ** 0.5
    left = torch.cat([h[:, keep] / root, strength**0.5 * torch.eye(len(keep), dtype=h.dtype)])
    right = torch.cat(
        [h[:, removed] @ down[:, removed].T / root, torch.zeros(len(keep), len(down), dtype=h.dtype)]
    )
    return down[:, keep] + torch.linalg.lstsq(left, right, driver="gelsd").solution.T


@pytest.mark.parametrize("damping", [1e-2, 1e-6, 1.0])
def test_least_squares_equals_lstsq_on_the_tokens(pico: Bench, damping: float) -> None:
    proposal = pico.plan(prune(repair="least_squares", damping=damping))
    for site, edit in zip(
        pico.graph.feed_forwards(component="understanding"), proposal.plan.edits, strict=False
    ):
        assert isinstance(edit, KeepChannels) and not edit.bias
        h, down = inputs_of(pico, site.consumer), weight(pico, site.consumer)
        expected = augmented(h, down, edit.keep, damping * float(h.square().mean()))
        torch.testing.assert_close(
            proposal.tensors[f"{site.consumer}.weight"], expected, rtol=1e-6, atol=1e-8
        )
    model = pico.apply(proposal)
    assert model.layers[0].mlp.down_proj.bias is None
    assert torch.equal(
        model.layers[0].mlp.down_proj.weight, proposal.tensors["layers.0.mlp.down_proj.weight"]
    )


def test_a_consumer_with_a_bias_is_refitted_with_it(pico: Bench) -> None:
    proposal = pico.plan(prune(stack="vision", repair="least_squares"))
    edit, name = proposal.plan.edits[0], "vision.0.mlp.fc2"
    assert isinstance(edit, KeepChannels)
    h, down = inputs_of(pico, name), weight(pico, name)
    bias = pico.model.vision[0].mlp.fc2.bias.detach()
    centred = h - h.mean(0)
    expected = augmented(centred, down, edit.keep, 1e-2 * float(centred.square().mean()))
    torch.testing.assert_close(proposal.tensors[f"{name}.weight"], expected, rtol=1e-8, atol=1e-10)
    # The refitted consumer has the same mean output as the whole one had.
    after = h[:, list(edit.keep)] @ proposal.tensors[f"{name}.weight"].T + proposal.tensors[f"{name}.bias"]
    torch.testing.assert_close(after.mean(0), (h @ down.T + bias).mean(0), rtol=1e-9, atol=1e-11)


@torch.no_grad()
def test_repairs_bring_the_outputs_nearer() -> None:
    pico = bench(calls=12, width=24, hidden=12)
    site = pico.graph.feed_forwards(layers={0})[0]
    h, down = inputs_of(pico, site.consumer), weight(pico, site.consumer)
    target, error = h @ down.T, {}
    for repair in ("none", "bias", "least_squares"):
        model = pico.apply(pico.plan(prune(repair=repair, layers="0")))
        edit = pico.plan(prune(repair=repair, layers="0")).plan.edits[0]
        assert isinstance(edit, KeepChannels)
        error[repair] = float((model.layers[0].mlp.down_proj(h[:, list(edit.keep)]) - target).square().mean())
    assert error["least_squares"] < error["bias"] < error["none"]


def test_dead_channels_get_no_weight_and_break_nothing() -> None:
    torch.manual_seed(0)
    h = torch.randn(50, 8, dtype=torch.float64)
    h[:, [1, 6]] = 0
    down = torch.randn(5, 8, dtype=torch.float64)
    second, mean = h.T @ h / 50, h.mean(0)
    refitted, _ = _repair.least_squares(down, None, second, mean, (0, 1, 2, 3), 1e-2)
    assert torch.equal(refitted[:, 1], down[:, 1])
    torch.testing.assert_close(refitted, augmented(h, down, (0, 1, 2, 3), 1e-2 * float(h.square().mean())))
    dead = torch.zeros(8, 8, dtype=torch.float64)
    assert torch.equal(_repair.least_squares(down, None, dead, mean * 0, (0, 1), 1e-2)[0], down[:, :2])


def refitted_error(w: Tensor, second: Tensor, kept: list[int], strength: float) -> float:
    """Of the best weights on `kept`, by a plain solve of the damped normal equations."""
    damped = second + strength * torch.eye(len(second), dtype=torch.float64)
    best_weights = torch.linalg.solve(damped[kept][:, kept], damped[kept] @ w.T).T
    lost = w.clone()
    lost[:, kept] -= best_weights
    return float(((lost @ damped) * lost).sum())


@pytest.mark.parametrize("bias", [False, True])
def test_reconstruction_removes_what_a_refit_can_do_without(bias: bool) -> None:
    """One by one, by brute force: every channel left is tried, and the others refitted from nothing."""
    draw = torch.Generator().manual_seed(0)
    mixed = torch.randn(9, 7, generator=draw, dtype=torch.float64)
    h = torch.randn(60, 9, generator=draw, dtype=torch.float64) @ mixed + 0.5
    w = torch.randn(4, 7, generator=draw, dtype=torch.float64)
    second, mean = h.T @ h / len(h), h.mean(0)
    found = _reconstruction.removal_errors(w, second, mean if bias else None, 0.05)
    about = torch.cov(h.T, correction=0) if bias else second
    strength = 0.05 * float(about.diagonal().mean())
    whole = float(((w @ about) * w).sum())
    left = list(range(7))
    while left:
        tried = {j: refitted_error(w, about, [k for k in left if k != j], strength) for j in left}
        worst = min(tried, key=lambda j: tried[j])
        left.remove(worst)
        assert float(found[worst]) == pytest.approx(tried[worst] / whole, rel=1e-9), left


def test_many_at_a_time_is_the_error_of_the_whole_set() -> None:
    draw = torch.Generator().manual_seed(1)
    mixed = torch.randn(20, 20, generator=draw, dtype=torch.float64)
    h = torch.randn(200, 20, generator=draw, dtype=torch.float64) @ mixed
    w = torch.randn(5, 20, generator=draw, dtype=torch.float64)
    second = h.T @ h / len(h)
    found = _reconstruction.removal_errors(w, second, None, 0.01, rounds=4)
    strength, whole = 0.01 * float(second.diagonal().mean()), float(((w @ second) * w).sum())
    order = found.argsort().tolist()
    for removed in (5, 10, 15):
        error = refitted_error(w, second, sorted(order[removed:]), strength)
        assert float(found[order[removed - 1]]) == pytest.approx(error / whole, rel=1e-9)


def test_reconstruction_leaves_less_error_than_activation(pico: Bench) -> None:
    """Of the output on the tokens measured; channels that are copies of others are the first to go."""
    errors = {}
    for score in ("activation", "reconstruction"):
        proposal = pico.plan(prune(score=score, repair="least_squares"))
        for site in pico.graph.feed_forwards(component="understanding"):
            kept = next(e.keep for e in proposal.plan.edits if isinstance(e, KeepChannels) and e.site == site.path)
            h, down = inputs_of(pico, site.consumer), weight(pico, site.consumer)
            refitted = proposal.tensors[f"{site.consumer}.weight"].double()
            errors[score, site.path] = float((h[:, list(kept)] @ refitted.T - h @ down.T).square().sum())
    for site in pico.graph.feed_forwards(component="understanding"):
        assert errors["reconstruction", site.path] < errors["activation", site.path]


def test_dead_channels_go_first_and_a_dead_site_breaks_nothing() -> None:
    w, second = torch.ones(2, 4), torch.diag(torch.tensor([1.0, 0.0, 2.0, 0.0], dtype=torch.float64))
    assert _reconstruction.removal_errors(w, second, None, 0.01).argsort().tolist()[:2] in ([1, 3], [3, 1])
    assert not _reconstruction.removal_errors(w, torch.zeros(4, 4, dtype=torch.float64), None, 0.01).any()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("samples", [1, 10])
def test_fewer_samples_than_channels_and_hardly_any_damping(samples: int, bias: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    h = torch.randn(samples, 64, generator=draw, dtype=torch.float64)
    w = torch.randn(8, 64, generator=draw, dtype=torch.float64)
    second, mean = h.T @ h / samples, h.mean(0) * (1 + 1e-13)  # rounded otherwise than the squares
    found = _reconstruction.removal_errors(w, second, mean if bias else None, 1e-20)
    ranked = found.sort().values
    assert bool(found.isfinite().all()) and float(ranked[0]) >= 0
    assert samples == 1 or float(ranked[64 - 12]) < 1e-9 < 0.1 < float(ranked[-1])


def test_reconstruction_counts_on_a_refit() -> None:
    with pytest.raises(ValidationError, match="repair: least_squares"):
        prune(score="reconstruction")


def test_a_factorisation_that_fails_is_damped_more() -> None:
    gram = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)  # indefinite: -1 is an eigenvalue
    target = torch.eye(2, dtype=torch.float64)
    before = gram.clone()
    found = _repair.solve(gram, target, gram.diagonal(), 0.4)
    assert torch.equal(gram, before)
    torch.testing.assert_close((gram + 1.6 * torch.eye(2, dtype=torch.float64)) @ found, target)


def test_activations_that_are_not_finite_are_refused(pico: Bench) -> None:
    broken = bench()
    broken.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("inf")
    with pytest.raises(PlanError, match="not finite"):
        broken.plan(prune(score="random", repair="least_squares"))


def test_a_bfloat16_model_gets_bfloat16_repairs() -> None:
    pico = bench(dtype=torch.bfloat16)
    proposal = pico.plan(prune(repair="least_squares"))
    assert {tensor.dtype for tensor in proposal.tensors.values()} == {torch.bfloat16}
    assert pico.apply(proposal)(*pico.feeds[0])[0].isfinite().all()


def greedy_budget(scores: dict[str, list[float]], ratio: float, multiple: int) -> dict[str, int]:
    """The same rule spelled out: the threshold goes down over all chunks until the budget is spent."""
    counts = {path: min(multiple, len(raw)) for path, raw in scores.items()}
    total = sum(map(len, scores.values()))
    budget = int(Fraction(str(ratio)) * total + Fraction(1, 2))
    while True:
        options = []
        for order, (path, raw) in enumerate(scores.items()):
            ranked = sorted(raw, reverse=True)
            chunk = ranked[counts[path] : counts[path] + multiple]
            if chunk:
                options.append((-sum(chunk) / len(chunk) / (sum(raw) / len(raw)), order, path, len(chunk)))
        if not options:
            return counts
        _, _, path, size = min(options)
        if sum(counts.values()) + size > budget:
            return counts
        counts[path] += size


@settings(max_examples=150)
@given(
    st.lists(st.lists(st.integers(1, 10**9), min_size=1, max_size=12), min_size=1, max_size=5),
    st.integers(1, 99),
    st.integers(1, 4),
)
def test_global_counts(raw: list[list[int]], percent: int, multiple: int) -> None:
    # Offsets make scores distinct, also after division by the mean.
    scores = {
        f"l{i}": [v + k * 0.137 + i * 0.0311 for k, v in enumerate(layer)] for i, layer in enumerate(raw)
    }
    counts = global_counts(scores, percent / 100, multiple)
    assert counts == greedy_budget(scores, percent / 100, multiple)
    for path, count in counts.items():
        assert count == len(scores[path]) or count % multiple == 0
        assert count >= min(multiple, len(scores[path]))


def test_global_allocation_gives_more_to_layers_with_heavy_tails(pico: Bench) -> None:
    scores = {"even": [1.0] * 8, "peaked": [100.0, *[0.1] * 7]}
    assert global_counts(scores, 0.5, 1) == {"even": 7, "peaked": 1}
    plan = pico.plan(prune(allocation="global")).plan
    kept = [edit.keep for edit in plan.edits if isinstance(edit, KeepChannels)]
    assert len(kept) == len(plan.edits) and sum(map(len, kept)) == 15
    for evidence, keep in zip(plan.evidence, kept, strict=True):
        assert keep == best(list(evidence.scores), len(keep))


def test_a_dry_run_has_the_right_shapes(pico: Bench) -> None:
    step = prune(repair="bias")
    dry, real = step.plan(pico.graph, Statistics(dry=True)).plan, pico.plan(step).plan
    assert [len(e.keep) for e in dry.edits] == [len(e.keep) for e in real.edits[:-1]]  # type: ignore[union-attr]
    assert all(edit.bias for edit in dry.edits)  # type: ignore[union-attr]


def test_only_what_is_read_is_declared() -> None:
    names = {
        (score, repair): [type(d).__name__ for d in prune(score=score, repair=repair).needs()]
        for score in ("activation", "magnitude")
        for repair in ("none", "bias", "least_squares")
    }
    assert names == {
        ("activation", "none"): ["ChannelActivation"],
        ("activation", "bias"): ["ChannelActivation"],
        ("activation", "least_squares"): ["ChannelActivation", "ChannelMoments"],
        ("magnitude", "none"): [],
        ("magnitude", "bias"): ["ChannelActivation"],
        ("magnitude", "least_squares"): ["ChannelMoments"],
    }
    needed = prune(score="reconstruction", repair="least_squares").needs()
    assert [type(declaration).__name__ for declaration in needed] == ["ChannelMoments"]


@pytest.mark.parametrize(
    "options",
    [
        {"keep_ratio": 0},
        {"keep_ratio": 2},
        {"multiple_of": 0},
        {"damping": 0},
        {"repair": "ls"},
        {"keepratio": 0.5},
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        prune(**options)
