"""Any architecture of transformers as a pico model: its default configuration, shrunk by the names of its fields.

What a field means is taken from its name; ratios that architectures differ in (key-value heads, experts, kinds of
layers) are kept. A few architectures compute sizes of their own from others and need a number given here.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from _pico_numbers import SPECIAL
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

HIDDEN, HEADS, HEAD_DIM, INNER, VOCABULARY, LAYERS = 32, 4, 8, 48, 96, 4
# First match wins; what none matches stays as it is. Numbers that are as small already stay, too.
_SIZES: tuple[tuple[str, int], ...] = (
    (r"^(audio_|text_|decoder_|unpadded_|pronunciation_|shape_)?vocab_size|ngram_vocab|encoder_hash_byte", VOCABULARY),
    (r"(^|_)(q_lora|kv_lora|o_lora|laurel|adapter|mamba_dt|time_step|hc_low|gated_norm|lora)_?rank", 8),
    (r"(num_experts_per_tok|num_experts_per_token|moe_topk|moe_k|top_k_experts|experts_top_k|num_experts_per)", 2),
    (r"(num_experts$|n_routed_experts|num_local_experts|moe_num_experts|num_routed_experts)", 4),
    (r"(moe|expert).*(intermediate|ffn|hidden)_?(size|dim)", 16),
    (r"(intermediate|ffn|inner|feed_forward|mlp_dim|d_ff|dff|dim_ff|ff_dim)", INNER),
    (r"(rope_head_dim|nope_head_dim|v_head_dim|index_head_dim|key_head_dim|value_head_dim)", HEAD_DIM),
    (r"(head_dim|d_head|headdim|dim_head|head_size|kv_channels|d_kv|mamba_head)", HEAD_DIM),
    (r"(num_attention_heads|n_heads|n_head$|num_heads|attention_heads|value_heads)", HEADS),
    (r"(num_hidden_layers|n_layer|num_layers|encoder_layers|decoder_layers|^depth$|num_blocks|num_global_layers)",
     LAYERS),
    (r"(position|max_seq_len|n_ctx|model_max_length|context_length|max_source|max_target)", 64),
    (r"(sliding_window|window_size|window_len|block_local|local_attention|attention_chunk)", 4),
    (r"(image_size|crop_size|resolution)", 16),
    (r"(patch_size)", 4),
    (r"(chunk_size|chunk_len|block_size)", 4),
    (r"(d_state|state_size)", 8),
    (r"(rotary_dim)", 4),
    (r"(n_mamba_heads|mamba_n_heads|mamba_num_heads)", HEADS),
    (r"(index_topk)", 4),
    (r"^(n_group|n_groups|num_expert_group|n_expert_groups|topk_group)$", 2),
    (r"(hidden_size|d_model|n_embd|^n_embed|emb_dim|embed_dim|embedding_size|^dim$|embedding_dim|lru_width|"
     r"hidden_dim|output_channels|_embed_dim|proj_dim|projection_dim|output_dim|width|d_ssm|per_layer_input)", HIDDEN),
)  # fmt: skip
_KV = re.compile(r"(num_key_value_heads|num_kv_heads|key_value_heads|num_query_groups|linear_num_key_heads)")
_TOKEN = re.compile(r"(token_id|token_index|token_ids|_idx)$")
_PERIOD = re.compile(r"(layer_period|attention_interval|interval|_period|sparse_step|_pattern|layer_group_size)$")
_OFFSET = re.compile(r"(layer_offset)$")
_NAMED = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "sep_token_id": 3}


def pico(config_class: Any, given: dict[str, Any] | None = None) -> Any:
    """A small configuration of a class: four layers of every kind that the default has."""
    special = SPECIAL.get(config_class.model_type, {}) | (given or {})
    default = config_class(**{k: v for k, v in special.items() if k.startswith("hidden_size_per")})
    fields = {name: value for name, value in vars(default).items() if not name.startswith("_")}
    chosen, changes = _layers(fields), dict[str, Any]()
    for name, value in fields.items():
        new = _shrunk(name, value, fields, chosen)
        if new is not value:
            changes[name] = new
    return config_class(**(changes | special))


def _layers(fields: dict[str, Any]) -> list[int]:
    """Which layers of the default stay: the first of each kind, then the first others, in their order."""
    count = _count(fields)
    lists = [value for value in fields.values() if isinstance(value, list) and len(value) == count]
    if not lists or not count:
        return list(range(LAYERS))
    kinds = list(zip(*(map(str, value) for value in lists), strict=True))
    first = sorted({kind: index for index, kind in reversed(list(enumerate(kinds)))}.values())[: LAYERS + 2]
    more = [index for index in range(count) if index not in first]
    return sorted(first + more[: max(0, LAYERS - len(first))])


def _count(fields: dict[str, Any]) -> int:
    named = (fields.get(name) for name in ("num_hidden_layers", "n_layer", "num_layers"))
    return next((value for value in named if isinstance(value, int)), 0)


def _shrunk(name: str, value: Any, fields: dict[str, Any], chosen: list[int]) -> Any:
    count = _count(fields)
    if name == "mm_tokens_per_image":
        return 4
    if hasattr(value, "to_dict") and hasattr(value, "model_type"):
        return pico(type(value)) if value.model_type in CONFIG_MAPPING else value.to_dict()
    if _TOKEN.search(name):
        return _token(name, value)
    if isinstance(value, dict) and "mrope_section" in value:
        return value | {"mrope_section": [2, 1, 1]}
    if isinstance(value, list) and count and len(value) == count:
        return [value[index] for index in chosen if index < len(value)]
    if name == "is_decoder":
        return True
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if name == "qk_head_dim":
        return 2 * HEAD_DIM
    if _KV.search(name):
        heads = next((fields[n] for n in ("num_attention_heads", "n_heads", "n_head") if fields.get(n)), value)
        return HEADS if value == heads else min(value, 2)
    if _PERIOD.search(name):
        return min(value, 2)
    if _OFFSET.search(name):
        return min(value, 1)
    small = next((size for pattern, size in _SIZES if re.search(pattern, name)), None)
    if small == LAYERS and "layer" in name and value == count:
        small = len(chosen)
    return value if small is None or value <= small else small


def _token(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_token(name, value[0])] if value else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return value
    if name in _NAMED:
        return _NAMED[name]
    # Apart from each other, and the same in a model's parts.
    return 80 + sum(map(ord, name)) % 15 if value >= 80 else value


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights large enough that every part matters to the output."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim < 2:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        else:
            parameter.data = torch.randn(parameter.shape, generator=generator) * (0.5 / parameter.shape[-1] ** 0.5)
