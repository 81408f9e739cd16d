"""Active parameters of mixtures that are called in ways of their own, against the gradients of a single token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from hf_models import write_folder

from umcompress.models.chosen_experts import ChosenExperts
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


T5: dict[str, Any] = {
    "vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
SWITCH = T5 | {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "num_experts": E}


def test_experts_that_are_modules_count_as_many_as_a_token_goes_through(tmp_path: Path) -> None:
    """A sample's tokens go through most of the experts of Switch, each token through one."""
    model = hf.SwitchTransformersForConditionalGeneration(hf.SwitchTransformersConfig(**SWITCH))
    source = open_source(str(write_folder(model, tmp_path / "switch")))
    loaded: Any = source.load()
    counted = weigh(loaded, source.family, source.runner(loaded)).parameters
    loaded.requires_grad_(True)
    logits = loaded(input_ids=torch.tensor([[7]]), decoder_input_ids=torch.tensor([[7]])).logits
    logits.double().square().sum().backward()
    unused = 0
    for path, module in loaded.named_modules():
        if path.endswith("mlp.experts"):
            learnt = [any(p.grad is not None and p.grad.any() for p in one.parameters()) for one in module.children()]
            assert sum(learnt) == 1 and len(learnt) == E
            unused += sum(p.numel() for p in module.parameters()) * (E - 1) // E
    assert unused and counted.active["understanding"] == counted.total - unused


def test_a_router_that_picks_twice_picks_two() -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 96, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_experts": E,
        "encoder_sparse_step": 2, "decoder_sparse_step": 2, "expert_capacity": 64, "max_position_embeddings": 64,
    }  # fmt: skip
    model = hf.NllbMoeForConditionalGeneration(hf.NllbMoeConfig(**sizes)).eval()
    shares, touched = dict[str, tuple[int, int]](), set[str]()
    with ChosenExperts(model, shares, touched), torch.no_grad():
        model(input_ids=torch.tensor([[7, 8, 9]]), decoder_input_ids=torch.tensor([[7, 8]]))
    experts = {name for name, _ in model.named_parameters() if ".experts." in name}
    assert experts and shares == dict.fromkeys(experts, (2, E)) and touched >= experts


def test_experts_that_compute_nothing_leave_room_in_a_stack(tmp_path: Path) -> None:
    """LongCat chooses among experts of which some hand on what they get: a token uses two real ones at most."""
    sizes = COMMON | {
        "num_layers": 2, "num_attention_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8, "head_dim": 8, "v_head_dim": 8, "ffn_hidden_size": 24, "expert_ffn_hidden_size": 16,
        "moe_topk": K, "n_routed_experts": E, "zero_expert_num": 4,
    }  # fmt: skip
    del sizes["num_key_value_heads"], sizes["num_hidden_layers"]
    source = open_source(str(write_folder(hf.LongcatFlashForCausalLM(hf.LongcatFlashConfig(**sizes)), tmp_path / "m")))
    model: Any = source.load()
    counted = weigh(model, source.family, source.runner(model)).parameters
    stacks = {name: tensor for name, tensor in model.named_parameters() if tensor.ndim == 3}
    assert {len(tensor) for tensor in stacks.values()} == {E, E + 4}
    unused = sum(tensor.numel() * (len(tensor) - K) // len(tensor) for tensor in stacks.values())
    assert counted.active["understanding"] == counted.total - unused


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
