"""Heads that streams of text and picture share, and linears that read heads beside channels, on FLUX's blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from denoisers import edited, near, output, second_head_away, stored, traced
from pipeline_zoo import ZOO
from torch import Tensor

from umcompress.calibrate.collect import collect
from umcompress.calibrate.declare import ChannelActivation, Declaration, HeadContribution, Scope
from umcompress.calibrate.statistics import Statistics
from umcompress.documents.plan import Edit, KeepChannels, SetTensors, SplitExperts
from umcompress.errors import PlanError
from umcompress.graph.model_graph import ModelGraph, trace_model
from umcompress.passes.channel_prune import ChannelPrune
from umcompress.passes.head_prune import HeadPrune
from umcompress.passes.moe_split import MoeSplit
from umcompress.rewrite.apply import rewrite

pytest.importorskip("diffusers")

FLUX = next(one for one in ZOO if one.name == "FLUX.1")
SCOPE = Scope("generation", "all")
SINGLE = "transformer.single_transformer_blocks"


def inputs_of(model: Any, path: str) -> Tensor:
    """What a linear reads in one call of the model, rows by channels, in float64."""
    seen: list[Tensor] = []
    hook = model.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    output(FLUX, model.transformer)
    hook.remove()
    return torch.cat([x.flatten(0, -2) for x in seen]).double()


def measured(graph: ModelGraph, model: Any, needs: Sequence[Declaration]) -> Statistics:
    def feed() -> None:
        output(FLUX, model.transformer)

    return collect(graph, needs, feed)


def test_contributions_of_heads_are_those_over_the_tokens_of_all_streams() -> None:
    model: Any = stored("FLUX.1").load()
    graph = trace_model(model, stored("FLUX.1").family)
    found = measured(graph, model, [HeadContribution(SCOPE)])[HeadContribution(SCOPE)]
    for site in (graph.attentions(stack="transformer")[1], graph.attentions(stack=SINGLE)[1]):
        norms: list[Tensor] = []
        for path, start in site.outputs:
            x, weight = inputs_of(model, path), model.get_submodule(path).weight.double()
            heads = [slice(start + 16 * head, start + 16 * (head + 1)) for head in range(3)]
            norms.append(torch.stack([(x[:, own] @ weight[:, own].T).norm(dim=1) for own in heads], dim=1))
        direct = torch.cat(norms).mean(0)
        assert len(torch.cat(norms)) == 22  # 16 tokens of the picture, 6 of the text
        assert torch.allclose(found[site].key_value_groups, direct, rtol=1e-9)


def test_magnitude_of_shared_heads_has_the_weights_of_both_streams() -> None:
    model: Any = stored("FLUX.1").load()
    graph = trace_model(model, stored("FLUX.1").family)
    site = graph.attentions(stack="transformer")[0]
    wanted = HeadPrune(component="generation", stack="transformer", score="magnitude", keep_ratio=0.67)
    (scores,) = [e.scores for e in wanted.plan(graph, Statistics()).plan.evidence if e.site == site.path]
    own = model.get_submodule(site.path)
    values = torch.cat([own.to_v.weight, own.add_v_proj.weight], dim=1).double()
    outputs = torch.cat([own.to_out[0].weight, own.to_add_out.weight]).double()
    for head, score in enumerate(scores):
        rows = slice(16 * head, 16 * (head + 1))
        assert score == pytest.approx(float((values[rows].norm() * outputs[:, rows].norm()).detach()), rel=1e-9)


@pytest.mark.parametrize("score", ["activation", "reconstruction"])
def test_channels_beside_heads_are_measured_and_refitted_as_channels_alone(score: str) -> None:
    """Least squares on the channels' columns: nothing changes in what the linear reads of the heads."""
    model: Any = stored("FLUX.1").load()
    graph = trace_model(model, stored("FLUX.1").family)
    site = next(one for one in graph.feed_forwards(stack=SINGLE) if one.index == 1)
    rows, last = inputs_of(model, site.consumer)[:, 48:], model.get_submodule(site.consumer).requires_grad_(False)
    wanted = ChannelPrune.model_validate({
        "component": "generation", "stack": SINGLE, "layers": "1", "keep_ratio": 0.5, "repair": "least_squares",
        "score": score,
    })  # fmt: skip
    statistics = measured(graph, model, wanted.needs())
    if score == "activation":
        activation = statistics[ChannelActivation(wanted.scope())][site].mean_abs
        assert torch.allclose(activation, rows.abs().mean(0), rtol=1e-9)
    proposal = wanted.plan(graph, statistics)
    kept = next(e.kept for e in proposal.plan.evidence)
    assert kept is not None and proposal.tensors[f"{site.consumer}.weight"].shape == (48, 48 + 96)
    heads = last.weight[:, :48].clone()
    left = (rows - rows.mean(0))[:, list(kept)]
    target = (rows - rows.mean(0)) @ last.weight[:, 48:].double().T
    before = float((left @ last.weight[:, 48:][:, list(kept)].double().T - target).norm())
    rewrite(model, graph.family, [proposal.plan], [proposal.tensors])
    assert torch.equal(last.weight[:, :48], heads)
    after = float((left @ last.weight[:, 48:].double().T - target).norm())
    assert after < 0.9 * before


def test_experts_beside_heads_are_refitted_with_the_bias_of_the_linear_that_stays() -> None:
    source, away = stored("FLUX.1"), list[float]()
    dense = output(FLUX, source.load().transformer)
    for repair in ("none", "least_squares"):
        model: Any = source.load()
        graph = trace_model(model, source.family)
        wanted = MoeSplit.model_validate({
            "component": "generation", "stack": SINGLE, "layers": "1", "experts": 4, "active": 2, "repair": repair,
        })  # fmt: skip
        proposal = wanted.plan(graph, measured(graph, model, wanted.needs()))
        names = {name for edit in proposal.plan.edits if isinstance(edit, SetTensors) for name in edit.names}
        assert (f"{SINGLE}.1.proj_out.bias" in names) == (repair == "least_squares")
        assert f"{SINGLE}.1.proj_out_experts.bias" not in names
        rewrite(model, source.family, [proposal.plan], [proposal.tensors])
        away.append(float((output(FLUX, model.transformer) - dense).norm()))
        block = model.get_submodule(f"{SINGLE}.1")
        assert block.proj_out.in_features == 48 and not hasattr(block, "proj_mlp")
    assert 0 < away[1] < 0.9 * away[0]
    # To the stream they are still added as one: neither is a branch that could go alone.
    assert trace_model(model, source.family).block(f"{SINGLE}.1").branches == ()


def test_a_plan_cuts_heads_and_channels_and_splits_what_is_left() -> None:
    source = stored("FLUX.1")
    graph = traced(source)
    edits: list[Edit] = [second_head_away(site) for site in graph.attentions(stack=SINGLE)]
    sites = graph.feed_forwards(stack=SINGLE)
    edits += [KeepChannels(site=site.path, keep=tuple(range(64, 192))) for site in sites]
    groups = tuple(tuple(range(start, 128, 4)) for start in range(4))
    splits = [SplitExperts(site=site.path, experts=groups, active=4) for site in sites]
    cut: Any = edited(source, edits)
    both: Any = edited(source, [*edits, *splits])
    assert near(output(FLUX, both.transformer), output(FLUX, cut.transformer))


def test_channels_made_together_with_queries_are_refused_in_words() -> None:
    model: Any = stored("FLUX.2").load()
    graph = trace_model(model, stored("FLUX.2").family)
    wanted = ChannelPrune(component="generation", stack=SINGLE, keep_ratio=0.5, score="magnitude")
    with pytest.raises(PlanError, match=r"to_qkv_mlp_proj.* together with queries"):
        wanted.plan(graph, Statistics())


def test_heads_that_are_normalised_together_are_refused_in_words() -> None:
    model: Any = stored("Wan").load()
    wanted = HeadPrune(component="generation", keep_ratio=0.5, score="magnitude")
    with pytest.raises(PlanError, match="over all heads at once"):
        wanted.plan(trace_model(model, stored("Wan").family), Statistics())
