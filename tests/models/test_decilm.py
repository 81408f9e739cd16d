"""Llamas whose layers differ, in vLLM's DeciLM layout: every number of the folder's configuration is used.

`logits` is a Llama of its own: it reads each layer from `block_configs` and the weights by name, in float64.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hf_models import write_folder
from hf_zoo import ZOO
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from umcompress.documents.plan import DropBranch, Edit, KeepChannels, KeepHeads, Plan
from umcompress.models.plain_folder import Plain
from umcompress.models.save import save_plain
from umcompress.models.source import Source, open_source
from umcompress.rewrite.apply import rewrite

LAYERS = "model.layers"
RAGGED: list[Edit] = [
    DropBranch(block=f"{LAYERS}.1", branch="attention", component="shared"),
    DropBranch(block=f"{LAYERS}.3", branch="feed_forward", component="shared"),
    KeepChannels(site=f"{LAYERS}.0.mlp", keep=tuple(range(3, 20))),
    KeepChannels(site=f"{LAYERS}.2.mlp", keep=(1, 2, 40)),
]
ALL_HEADS: list[Edit] = [
    KeepHeads(site=f"{LAYERS}.{layer}.self_attn", component="shared", key_value_groups=(1,)) for layer in range(4)
]


def rotated(x: Tensor, theta: float) -> Tensor:
    """(T, heads, d): rotary embedding by halves, position t turns pair i by t * theta^(-2i/d)."""
    count, _, width = x.shape
    turns = torch.arange(count).double()[:, None] * theta ** (-torch.arange(0, width, 2).double() / width)
    cos, sin = turns.cos()[:, None], turns.sin()[:, None]
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def logits(folder: Path, ids: Tensor) -> Tensor:
    """(T,) -> (T, V)."""
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    weights = {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}
    heads, width, used = config.num_attention_heads, config.head_dim, set()

    def linear(x: Tensor, name: str, bias: bool) -> Tensor:
        used.update({f"{name}.weight"} | ({f"{name}.bias"} if bias else set()))
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"] if bias else None)

    def norm(x: Tensor, name: str) -> Tensor:
        used.add(f"{name}.weight")
        return weights[f"{name}.weight"] * x * (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).rsqrt()

    used.add("model.embed_tokens.weight")
    x = weights["model.embed_tokens.weight"][ids]
    for index, layer in enumerate(config.block_configs):
        here = f"{LAYERS}.{index}"
        if not layer.attention.no_op:
            y, groups = norm(x, f"{here}.input_layernorm"), heads // layer.attention.n_heads_in_group
            q, k, v = (linear(y, f"{here}.self_attn.{part}_proj", config.qkv_bias) for part in "qkv")
            q, k = (
                rotated(part.view(len(ids), -1, width), config.rope_parameters["rope_theta"]) for part in (q, k)
            )
            k, v = (
                part.view(len(ids), groups, width).repeat_interleave(heads // groups, 1) for part in (k, v)
            )
            seen = torch.ones(len(ids), len(ids)).tril().bool()
            weight = (torch.einsum("thd,shd->hts", q, k) / width**0.5).masked_fill(~seen, -torch.inf).softmax(-1)
            mixed = torch.einsum("hts,shd->thd", weight, v).flatten(1)
            x = x + linear(mixed, f"{here}.self_attn.o_proj", config.attention_bias)
        if not layer.ffn.no_op:
            y = norm(x, f"{here}.post_attention_layernorm")
            assert weights[f"{here}.mlp.gate_proj.weight"].shape == (layer.ffn.intermediate_size, config.hidden_size)
            inner = functional.silu(linear(y, f"{here}.mlp.gate_proj", config.mlp_bias))
            inner = inner * linear(y, f"{here}.mlp.up_proj", config.mlp_bias)
            x = x + linear(inner, f"{here}.mlp.down_proj", config.mlp_bias)
    head = "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
    found = linear(norm(x, "model.norm"), head, False)
    assert used == weights.keys() and len(config.block_configs) == config.num_hidden_layers
    return found


def source(kind: str, folder: Path, **changes: Any) -> Source:
    torch.manual_seed(1)
    model = ZOO[kind].build()
    for key, value in changes.items():
        setattr(model.config, key, value)
    model = type(model)(model.config).eval()
    for name, parameter in model.named_parameters():
        parameter.data.normal_(0, 0.5) if name.endswith("bias") else parameter.data.mul_(8)
    return open_source(str(write_folder(model, folder)))


def laid_out(source: Source, edits: list[Edit]) -> tuple[Any, Plain | str]:
    model = rewrite(source.load(), source.family, [Plan(pass_name="cut", edits=tuple(edits))])
    return model, source.family.laid_out("deci", model, source.folder)


@pytest.mark.parametrize(
    ("kind", "edits", "changes"),
    [
        ("llama", RAGGED, {}),
        ("llama", [*ALL_HEADS, *RAGGED[2:]], {}),
        ("llama", RAGGED, {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
        ("mistral", RAGGED, {"sliding_window": None}),
        ("qwen2", RAGGED, {"use_sliding_window": False, "layer_types": ["full_attention"] * 4}),
    ],
)
def test_the_folder_says_all_that_the_model_computes(
    kind: str, edits: list[Edit], changes: dict[str, Any], tmp_path: Path
) -> None:
    opened = source(kind, tmp_path / "model", **changes)
    model, plain = laid_out(opened, edits)
    assert isinstance(plain, Plain) and "--trust-remote-code" in plain.note
    save_plain(plain, tmp_path / "deci", opened.folder)
    config = json.loads((tmp_path / "deci" / "config.json").read_text())
    assert config["architectures"] == ["DeciLMForCausalLM"]
    ids = torch.tensor([5, 9, 2, 77, 30, 1, 4])
    with torch.no_grad():
        ours = model.double()(ids[None], use_cache=False).logits[0]
    # transformers' norms and rotary embedding compute in float32, whatever the model is in.
    assert torch.allclose(logits(tmp_path / "deci", ids), ours, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "edits", "changes", "says"),
    [
        ("qwen3", RAGGED, {}, "Qwen3ForCausalLM"),
        ("llama", [DropBranch(block=f"{LAYERS}.0", branch="attention", component="shared")], {}, "block 0 has none"),
        ("llama", ALL_HEADS[:1], {}, "2, 4 query heads"),
        ("llama", [KeepChannels(site=f"{LAYERS}.0.mlp", keep=(1, 2), bias=True)], {}, "some have none"),
        ("mistral", RAGGED, {"sliding_window": 8}, "window of 8 tokens"),
        ("qwen2", RAGGED, {}, "sliding window"),
    ],
)
def test_what_vllm_would_compute_otherwise_is_refused(
    kind: str, edits: list[Edit], changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    _, reason = laid_out(source(kind, tmp_path / "model", **changes), edits)
    assert isinstance(reason, str) and says in reason


def test_a_qwen2_with_fewer_heads_is_served_as_decilm(tmp_path: Path) -> None:
    """vLLM's Qwen2 takes the size of a head from the hidden size, which cut heads no longer add up to."""
    no_windows = {"use_sliding_window": False, "layer_types": ["full_attention"] * 4}
    opened = source("qwen2", tmp_path / "model", **no_windows)
    for edits, architecture in (([], "Qwen2ForCausalLM"), (ALL_HEADS, "DeciLMForCausalLM")):
        model = rewrite(opened.load(), opened.family, [Plan(pass_name="cut", edits=tuple(edits))])
        plain = opened.family.laid_out("vllm", model, opened.folder)
        assert isinstance(plain, Plain)
        assert json.loads(plain.texts["config.json"])["architectures"] == [architecture]
