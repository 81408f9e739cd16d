"""Active parameters of mixtures that are called in ways of their own, against the gradients of a single token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from hf_models import write_folder

from umcompress.models.measure import weigh
from umcompress.models.source import open_source

E, K = 8, 2
COMMON: dict[str, Any] = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_key_value_heads": 2}
DBRX: dict[str, Any] = {
    "d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 96, "max_seq_len": 64,
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
    "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": E, "moe_top_k": K},
}  # fmt: skip
CHOICE: dict[str, Any] = {"num_local_experts": E, "num_experts_per_tok": K}
WIDTHS = {"intermediate_size": 24, "intermediate_size_mlp": 40, "num_attention_heads": 4, "head_dim": 8}
LLAMA4 = COMMON | CHOICE | WIDTHS
# Each model with the endings of the parameters that hold all experts.
MODELS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "llama4": (lambda: hf.Llama4ForCausalLM(hf.Llama4TextConfig(**LLAMA4)), (".gate_up_proj", "experts.down_proj")),
    "dbrx": (lambda: hf.DbrxForCausalLM(hf.DbrxConfig(**DBRX)), (".w1", ".v1", ".w2")),
    # Its attention has experts, too.
    "jetmoe": (
        lambda: hf.JetMoeForCausalLM(hf.JetMoeConfig(**COMMON, **CHOICE, kv_channels=8, intermediate_size=24)),
        ("input_linear.weight", "output_linear.weight"),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_only_the_experts_that_a_token_learns_from_count(name: str, tmp_path: Path) -> None:
    build, stacked = MODELS[name]
    source = open_source(str(write_folder(build(), tmp_path / name)))
    model: Any = source.load()
    counted = weigh(model, source.family, source.runner(model)).parameters.active["understanding"]
    model.requires_grad_(True)
    model(input_ids=torch.tensor([[7]])).logits.double().square().sum().backward()
    used = {}
    for key, parameter in reversed(list(model.named_parameters())):
        if not key.endswith(stacked):
            used[key] = parameter.numel()
            continue
        assert parameter.grad is not None
        parts = parameter.grad.reshape(E, -1)
        used[key] = int((parts != 0).any(1).sum()) * parts.shape[1]
        if key.endswith("experts.input_linear.weight"):  # makes queries, and a single token attends to itself anyway
            used[key] = used[key.replace("input_linear", "output_linear")]
        assert used[key] == parameter.numel() * K // E
    assert counted == sum(used.values())
