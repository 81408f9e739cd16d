"""A block's score is the cosine between what goes into it and what comes out, whatever it does inside.

The reference are hooks on the block; what is inside differs: residuals added in modules (BLOOM), states (RWKV), norms
behind the last addition (BERT, OLMo 2), streams that are scaled (MiniMax, Granite, Doge), parallel branches (GPT-NeoX),
routers that hand something on (ZAYA).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from hf_models import randomise
from hf_subject import FAMILY, run, void
from torch import Tensor, nn

from umcompress.calibrate.collect import collect
from umcompress.extend import BlockSimilarity, Scope
from umcompress.graph.model_graph import trace_model

NAMES: dict[str, Any] = {"vocab_size": 96, "hidden_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = NAMES | {
    "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 64,
}  # fmt: skip
EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
TYPES: dict[str, Callable[[], Any]] = {
    "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(**NAMES, n_layer=3, n_head=4)),
    "rwkv": lambda: hf.RwkvForCausalLM(
        hf.RwkvConfig(**NAMES, num_hidden_layers=3, attention_hidden_size=32, intermediate_size=48)
    ),
    "bert": lambda: hf.BertLMHeadModel(hf.BertConfig(**SIZES, is_decoder=True)),
    "olmo2": lambda: hf.Olmo2ForCausalLM(hf.Olmo2Config(**SIZES)),
    "minimax": lambda: hf.MiniMaxForCausalLM(
        hf.MiniMaxConfig(**SIZES, **EXPERTS, num_key_value_heads=2, head_dim=8, block_size=4)
    ),
    "doge": lambda: hf.DogeForCausalLM(hf.DogeConfig(**SIZES, num_key_value_heads=2)),
    "granite": lambda: hf.GraniteForCausalLM(hf.GraniteConfig(**SIZES, residual_multiplier=0.5)),
    "gpt_neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SIZES)),
    # Its routers hand something on from block to block that is as wide as the stream.
    "zaya": lambda: hf.ZayaForCausalLM(hf.ZayaConfig(
        **SIZES, num_key_value_heads=2, head_dim=8, moe_intermediate_size=48, num_experts=4, router_hidden_size=32,
    )),
}  # fmt: skip


def by_hooks(model: Any, blocks: list[nn.Module]) -> list[float]:
    """Mean cosine over tokens, block by block."""
    found: dict[int, list[Tensor]] = {}
    before: dict[int, Tensor] = {}
    hooks = []
    for place, block in enumerate(blocks):

        def enter(_: nn.Module, args: Any, kwargs: Any, place: int = place) -> None:
            before[place] = (args[0] if args else kwargs["hidden_states"]).clone()

        def leave(_: nn.Module, __: Any, output: Any, place: int = place) -> None:
            after = output[0] if isinstance(output, tuple) else output
            cosine = torch.nn.functional.cosine_similarity(before[place].double(), after.double(), dim=-1)
            found.setdefault(place, []).append(cosine.flatten())

        hooks += [block.register_forward_pre_hook(enter, with_kwargs=True), block.register_forward_hook(leave)]
    run(model)
    for hook in hooks:
        hook.remove()
    return [float(torch.cat(found[place]).mean()) for place in range(len(blocks))]


@pytest.mark.parametrize("name", TYPES)
def test_a_block_is_scored_by_what_goes_in_and_comes_out(name: str) -> None:
    torch.manual_seed(0)
    model: Any = TYPES[name]().eval()
    randomise(model)
    graph = trace_model(FAMILY.adopt(model), FAMILY)
    need = BlockSimilarity(Scope("shared"))
    measured = collect(graph, [need], lambda: void(run(model)))[need]
    right = by_hooks(model, [model.get_submodule(block.path) for block in graph.blocks()])
    assert [measured[block, "shared"].cosine for block in graph.blocks()] == pytest.approx(right, abs=1e-9)
    assert len(set(right)) == 3
