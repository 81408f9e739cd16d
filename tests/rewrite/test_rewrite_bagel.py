"""Plans on the real BAGEL classes at a toy size: sites, what edits compute, storing."""

from __future__ import annotations

import copy

import pytest
import torch
from drawing import draw_plan, with_values
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pico import bagel_outputs, folder_bytes, pico_bagel, write_bagel_config
from torch import Tensor, nn

from umcompress.documents.plan import CompressionRecord, DropBlock, DropBranch, Edit, KeepChannels, KeepHeads, Plan
from umcompress.graph.model_graph import trace_model
from umcompress.models.bagel.family import BagelFamily
from umcompress.models.save import load_compressed, save_compressed
from umcompress.rewrite.apply import rewrite

FAMILY = BagelFamily()
DECODER = "language_model.model.layers"
VISION = "vit_model.vision_model.encoder.layers"


def zeroed(model: nn.Module, *names: str, columns: tuple[int, ...] | None = None) -> None:
    """Zero whole tensors, or some columns of them, in place: the reference that removal must agree with."""
    for name in names:
        data = model.get_parameter(name).data
        if columns is None:
            data.zero_()
        else:
            data[:, list(columns)] = 0


def agree(edited: nn.Module, reference: nn.Module, original: nn.Module) -> None:
    """Equal to the reference, and unlike the original: an edit that does nothing must not pass."""
    got, want, before = bagel_outputs(edited), bagel_outputs(reference), bagel_outputs(original)
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)
    assert any(not torch.allclose(x, y, rtol=1e-2, atol=1e-2) for x, y in zip(got, before, strict=True))


def edited(model: nn.Module, *edits: Edit) -> nn.Module:
    return rewrite(copy.deepcopy(model), FAMILY, [Plan(pass_name="test", edits=edits)])


def test_every_site_is_found() -> None:
    graph = trace_model(pico_bagel(), FAMILY)
    assert [len(graph.blocks(stack=s)) for s in ("decoder", "vision")] == [3, 2]
    for kind in ("attention", "feed_forward"):
        assert len(graph.branches(kind, "understanding")) == len(graph.branches(kind, "generation")) == 3
        assert len(graph.branches(kind, stack="vision")) == 2
    site = graph.attentions("generation")[1]
    assert (site.key_value_groups, site.query_heads_per_group, site.head_dim) == (2, 2, 4)
    assert site.query == f"{DECODER}.1.self_attn.q_proj_moe_gen"
    gated, plain = graph.feed_forwards("generation")[2], graph.feed_forwards(stack="vision")[1]
    assert (gated.path, gated.gated, gated.activation) == (f"{DECODER}.2.mlp_moe_gen", True, "silu")
    assert (plain.path, plain.gated, plain.activation) == (f"{VISION}.1.mlp", False, "gelu")
    assert plain.consumer == f"{VISION}.1.mlp.fc2"
    assert graph.blocks("generation", stack="vision") == ()


@pytest.mark.parametrize("path", [f"{DECODER}.1.mlp", f"{DECODER}.0.mlp_moe_gen", f"{VISION}.0.mlp"])
def test_channels(path: str) -> None:
    model, last = pico_bagel(), "fc2" if VISION in path else "down_proj"
    reference = copy.deepcopy(model)
    keep = (0, 3, 4, 11, 19)
    zeroed(reference, f"{path}.{last}.weight", columns=tuple(set(range(20)) - set(keep)))
    agree(edited(model, KeepChannels(site=path, keep=keep)), reference, model)


@pytest.mark.parametrize("component", ["understanding", "generation"])
def test_query_heads(component: str) -> None:
    model = pico_bagel()
    reference, site = copy.deepcopy(model), f"{DECODER}.1.self_attn"
    end = "_moe_gen" if component == "generation" else ""
    zeroed(reference, f"{site}.o_proj{end}.weight", columns=(0, 1, 2, 3, 12, 13, 14, 15))
    agree(edited(model, KeepHeads(site=site, component=component, query_heads=(1, 2))), reference, model)  # type: ignore[arg-type]


def test_key_value_groups_of_both_streams_and_of_the_vision_tower() -> None:
    model = pico_bagel()
    reference, site = copy.deepcopy(model), f"{DECODER}.2.self_attn"
    for end in ("", "_moe_gen"):
        zeroed(reference, f"{site}.o_proj{end}.weight", columns=tuple(range(8)))
    zeroed(reference, f"{VISION}.0.self_attn.out_proj.weight", columns=(3, 4, 5))
    cuts = [
        KeepHeads(site=site, component="understanding", key_value_groups=(1,)),
        KeepHeads(site=site, component="generation", key_value_groups=(1,)),
        KeepHeads(site=f"{VISION}.0.self_attn", component="understanding", key_value_groups=(0, 2, 3)),
    ]
    agree(edited(model, *cuts), reference, model)


def test_whole_attention_feed_forward_and_block() -> None:
    model = pico_bagel()
    reference = copy.deepcopy(model)
    ends = ("", "_moe_gen")
    zeroed(reference, *(f"{DECODER}.0.self_attn.o_proj{end}.weight" for end in ends))
    zeroed(reference, *(f"{DECODER}.1.self_attn.o_proj{end}.weight" for end in ends))
    zeroed(reference, *(f"{DECODER}.1.mlp{end}.down_proj.weight" for end in ends))
    zeroed(reference, f"{VISION}.1.mlp.fc2.weight", f"{VISION}.1.mlp.fc2.bias")
    drops: list[Edit] = [
        DropBranch(block=f"{DECODER}.0", branch="attention", component="understanding"),
        DropBranch(block=f"{DECODER}.0", branch="attention", component="generation"),
        DropBlock(block=f"{DECODER}.1"),
        DropBranch(block=f"{VISION}.1", branch="feed_forward", component="understanding"),
    ]
    result = edited(model, *drops)
    agree(result, reference, model)
    names = result.state_dict()
    assert not any(name.startswith((f"{DECODER}.0.self_attn", f"{DECODER}.2")) for name in names)
    assert f"{VISION}.1.layer_norm2.weight" not in names
    assert result.get_submodule(f"{DECODER}.1.self_attn").layer_idx == 1


def test_a_stream_without_attention_is_not_seen_by_the_other() -> None:
    model = pico_bagel()
    drops = [
        DropBranch(block=f"{DECODER}.{i}", branch="attention", component="understanding") for i in range(3)
    ]
    blind = edited(model, *drops)
    *_, seeing = bagel_outputs(model)
    *_, velocity = bagel_outputs(blind)
    for either in (model, blind):
        either.get_parameter("language_model.model.embed_tokens.weight").data.mul_(-1)
    assert torch.equal(velocity, bagel_outputs(blind)[-1])
    assert not torch.equal(seeing, bagel_outputs(model)[-1])
    left = [name for name in blind.state_dict() if f"{DECODER}.1.self_attn" in name]
    assert left
    assert all("_moe_gen." in name for name in left)


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)
@given(data=st.data())
def test_in_turn_at_once_and_reloaded(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("bagel")
    write_bagel_config(home)
    model = pico_bagel()
    twin = copy.deepcopy(model)
    plans: list[Plan] = []
    blobs: list[dict[str, Tensor]] = []
    for _ in range(2):
        plan, values = with_values(data, draw_plan(data, model, FAMILY), model, FAMILY)
        rewrite(model, FAMILY, [plan], [values])
        plans.append(plan)
        blobs.append(values)
    rewrite(twin, FAMILY, plans, blobs)
    record = CompressionRecord(base="pico", family="bagel", plans=tuple(plans))
    save_compressed(model, FAMILY, home / "model", record, source=home)
    loaded = load_compressed(home / "model", FAMILY)
    for other in (twin, loaded):
        assert other.state_dict().keys() == model.state_dict().keys()
        for x, y in zip(bagel_outputs(model), bagel_outputs(other), strict=True):
            assert torch.equal(x, y)
    save_compressed(loaded, FAMILY, home / "again", record, source=home)
    assert folder_bytes(home / "again") == folder_bytes(home / "model")
