"""The language model of a BAGEL that understands, as a folder that transformers loads: text alone, no tower.

BAGEL calls it a Qwen2. Its heads have norms, which Qwen2 lacks and Qwen3 has, so it is a Qwen3 with biases; the one
bias that BAGEL has not, of what leaves the attention, is zero.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from umcompress.checkpoint.fill import sources
from umcompress.checkpoint.writer import TensorToWrite, in_memory
from umcompress.models.bagel.attention import BagelAttention
from umcompress.models.bagel.config import EXTRA_FILES, BagelConfig
from umcompress.models.bagel.expert_layout import NOTES
from umcompress.models.bagel.ordinary import CONFIG, TEXT_CONFIG, VISION_CONFIG
from umcompress.models.plain_folder import Plain
from umcompress.rewrite.nn.absent import kept_task

OWN = "language_model."
BLOCKS = f"{OWN}model.layers"
WEIGHTS = "model.safetensors"
NOTE = (
    "the language model that understands, as a plain Qwen3 that transformers loads: it reads text; the vision tower "
    "and the weights that generate are left out"
)
# Of the source's folder: what says that it is a BAGEL, or is about pictures.
_OF_BAGEL = frozenset({TEXT_CONFIG, VISION_CONFIG, NOTES, *EXTRA_FILES, "preprocessor_config.json"})
_TAKEN_OVER = ("hidden_act", "max_position_embeddings", "initializer_range", "attention_dropout")
# Heads, groups, channels of a block.
Sizes = tuple[int, int, int]


def language_folder(model: nn.Module, folder: Path, values: Mapping[str, TensorToWrite] | None = None) -> Plain | str:
    """The folder, or why the stream is no Qwen3.  Arguments as in `Family.plain`."""
    if kept_task(model) == "generation":
        return "it is specialized for generation, and its language model has no head"
    blocks = list(model.get_submodule(BLOCKS).children())
    found = [_sizes(block) for block in blocks]
    if reason := next((each for each in found if isinstance(each, str)), None):
        return f"a Qwen3 has no such layer: {reason}"
    sizes = {each for each in found if not isinstance(each, str)}
    if len(sizes) > 1:
        listed = ", ".join("/".join(map(str, each)) for each in sorted(sizes)[:4])
        return f"its layers differ (heads/groups/channels {listed}), and a Qwen3 has one number of each: cut all alike"
    names = {
        name.removeprefix(OWN): name for name in model.state_dict(keep_vars=True)
        if name.startswith(OWN) and "_moe_gen" not in name
    }  # fmt: skip
    weights = sources(model, {WEIGHTS: names}, values)[WEIGHTS]
    dtype = weights["model.embed_tokens.weight"].dtype
    before = BagelConfig.from_folder(folder)
    nothing = in_memory(torch.zeros(before.text.hidden_size, dtype=dtype))
    weights |= {f"model.layers.{index}.self_attn.o_proj.bias": nothing for index in range(len(blocks))}
    config = _config(folder, before, len(blocks), sizes.pop(), dtype)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    # Opened here it is a model that reads text, whose outputs have other names: so it is read back, and not run.
    return Plain({WEIGHTS: weights}, {CONFIG: text}, _OF_BAGEL, note=NOTE, loads_with="transformers", opens_here=False)


def _sizes(block: nn.Module) -> Sizes | str:
    """Of the understanding stream of a block; a reason where there is none that a Qwen3 has."""
    attention, gate = getattr(block, "self_attn", None), getattr(getattr(block, "mlp", None), "gate_proj", None)
    if not isinstance(attention, BagelAttention) or (stream := attention.stream("understanding")) is None:
        return "the understanding stream lost an attention"
    if not isinstance(gate, nn.Linear):
        return "the understanding stream has experts, or lost a feed-forward"
    if getattr(block.get_submodule("mlp.down_proj"), "bias", None) is not None:
        return "a feed-forward has a bias (use another repair than bias)"
    return stream.query_heads_per_group * stream.key_value_groups, stream.key_value_groups, gate.weight.shape[0]


def _config(folder: Path, before: BagelConfig, layers: int, sizes: Sizes, dtype: torch.dtype) -> dict[str, Any]:
    given = json.loads((folder / TEXT_CONFIG).read_text(encoding="utf-8"))
    heads, groups, channels = sizes
    text = before.text
    return {name: given[name] for name in _TAKEN_OVER if name in given} | {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": True,
        "hidden_size": text.hidden_size, "head_dim": text.head_dim, "intermediate_size": channels,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": groups,
        "rms_norm_eps": text.rms_norm_eps, "vocab_size": text.vocab_size, "tie_word_embeddings": False,
        # Older readers look for the first, newer ones for the second.
        "rope_theta": text.rope_theta, "rope_parameters": {"rope_type": "default", "rope_theta": text.rope_theta},
        "bos_token_id": before.tokens.bos_token_id, "eos_token_id": before.tokens.eos_token_id,
        "use_sliding_window": False, "dtype": str(dtype).removeprefix("torch."),
    }  # fmt: skip
