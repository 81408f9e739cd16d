"""Plain transformers blocks: traced with their `**kwargs`, edited, and compared with zeroed references."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    Qwen2Config,
    Qwen2Model,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from umcompress.documents.plan import DropBranch, KeepChannels, Plan, SplitExperts
from umcompress.graph.lower import lower
from umcompress.graph.model_graph import trace_model
from umcompress.rewrite.apply import rewrite

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 24, "num_attention_heads": 4, "num_hidden_layers": 3,
}  # fmt: skip


class Plain:
    """Everything is understanding; one stack."""

    main_stack = "blocks"

    def __init__(self, path: str, last: str) -> None:
        self.path, self.last = path, last

    def stacks(self, model: nn.Module) -> dict[str, str]:
        return {"blocks": self.path}

    def component_of(self, path: str) -> str:
        return "understanding"


def llama() -> tuple[PreTrainedModel, Plain]:
    return LlamaModel(LlamaConfig(num_key_value_heads=2, vocab_size=32, **SIZES)), Plain(
        "layers", "down_proj"
    )


def qwen() -> tuple[PreTrainedModel, Plain]:
    return Qwen2Model(Qwen2Config(num_key_value_heads=2, vocab_size=32, **SIZES)), Plain(
        "layers", "down_proj"
    )


def siglip() -> tuple[PreTrainedModel, Plain]:
    model = SiglipVisionModel(SiglipVisionConfig(image_size=8, patch_size=4, **SIZES))
    path = next(name for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
    return model, Plain(path, "fc2")


def run(model: nn.Module) -> Tensor:
    with torch.no_grad():
        if isinstance(model, SiglipVisionModel):
            pixels = torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8)
            out: Tensor = model(pixel_values=pixels).last_hidden_state
            return out
        ids = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]])
        mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
        out = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return out[mask.bool()]


@pytest.mark.parametrize("build", [llama, qwen, siglip])
def test_lowered_and_edited_blocks(build: Any) -> None:
    torch.manual_seed(0)
    model, family = build()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    model.eval()
    want, graph = run(model), trace_model(model, family)
    assert [(b.kind, b.component) for b in graph.branches()] == 3 * [
        ("attention", "understanding"),
        ("feed_forward", "understanding"),
    ]
    assert [site.width for site in graph.feed_forwards()] == [24] * 3
    twin = copy.deepcopy(model)
    for site in graph.blocks():
        lower(twin.get_submodule(site.path), graph.block_graph(site.path))
    assert torch.equal(run(twin), want)

    keep = tuple(range(0, 24, 2))
    first, last = f"{family.path}.0", f"{family.path}.2"
    plan = Plan(
        pass_name="test",
        edits=(
            KeepChannels(site=f"{first}.mlp", keep=keep),
            DropBranch(block=last, branch="attention", component="understanding"),
            DropBranch(block=f"{family.path}.1", branch="feed_forward", component="understanding"),
        ),
    )
    edited = rewrite(copy.deepcopy(model), family, [plan])
    cut = model.get_submodule(f"{first}.mlp.{family.last}").weight.data
    cut[:, 1::2] = 0
    out_proj = "out_proj" if build is siglip else "o_proj"
    for path in (f"{last}.self_attn.{out_proj}", f"{family.path}.1.mlp.{family.last}"):
        for parameter in model.get_submodule(path).parameters():
            parameter.data.zero_()
    torch.testing.assert_close(run(edited), run(model), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(run(edited), want, atol=1e-2)
    assert not any(name.startswith(f"{last}.self_attn") for name in edited.state_dict())


@pytest.mark.parametrize("build", [llama, qwen, siglip])
def test_split_blocks(build: Any) -> None:
    torch.manual_seed(0)
    model, family = build()
    model.eval()
    want, experts = run(model), tuple(tuple(range(24)[e::4]) for e in range(4))
    sites = trace_model(model, family).feed_forwards()
    for active in (4, 1):
        edits = tuple(SplitExperts(site=site.path, experts=experts, active=active) for site in sites)
        split = rewrite(copy.deepcopy(model), family, [Plan(pass_name="test", edits=edits)])
        assert [site.path for site in trace_model(split, family).experts()] == [site.path for site in sites]
        assert torch.allclose(run(split), want, rtol=0, atol=1e-5) == (active == 4)


def test_keywords_that_the_block_does_not_know_reach_the_attention() -> None:
    model, _ = llama()
    block = model.get_submodule("layers.0")
    graph = trace_model(model, Plain("layers", "down_proj")).block_graph("layers.0")
    lower(block, graph)
    seen: dict[str, Any] = {}
    attention = block.get_submodule("self_attn")
    attention.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    x = torch.zeros(1, 2, 32)
    block(x, position_embeddings=(torch.ones(1, 2, 8), torch.zeros(1, 2, 8)), my_flag=7)
    assert seen["my_flag"] == 7
