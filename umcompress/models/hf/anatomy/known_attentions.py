"""Names that attention modules of transformers give to their parts. Extend these tables for a new architecture."""

from __future__ import annotations

from typing import Literal

QUERY, KEY, VALUE = ("q_proj", "query", "to_q"), ("k_proj", "key", "to_k"), ("v_proj", "value", "to_v")


OUTPUT = ("o_proj", "out_proj", "projection_layer", "proj", "c_proj", "dense", "out")


# One linear that makes queries, keys and values, one after the other: in how many bundles, see `StreamLayout`. Others
# lay them out otherwise under the same names.
FUSED = {
    "Phi3Attention": ("qkv_proj", 1), "Phi4MultimodalAttention": ("qkv_proj", 1), "GPT2Attention": ("c_attn", 1),
    "MptAttention": ("Wqkv", 1), "DbrxAttention": ("Wqkv", 1),
    "Qwen2_5_VLVisionAttention": ("qkv", 1), "Qwen2VLVisionAttention": ("qkv", 1), "VisionAttention": ("qkv", 1),
    "Qwen3VLVisionAttention": ("qkv", 1),
    "GPTNeoXAttention": ("query_key_value", 0), "BloomAttention": ("query_key_value", 0),
    "FalconAttention": ("query_key_value", 0), "PersimmonAttention": ("query_key_value", 0),
    "GPTBigCodeAttention": ("c_attn", 0), "CodeGenAttention": ("qkv_proj", 4),
}  # fmt: skip


# Those whose values lie before the keys.
VALUES_FIRST = ("CodeGenAttention",)


NORMS: tuple[tuple[str, Literal["query", "key"]], ...] = (
    ("q_norm", "query"), ("k_norm", "key"), ("q_layernorm", "query"), ("k_layernorm", "key"),
)  # fmt: skip


HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")


GROUPS = ("num_key_value_heads", "num_kv_heads", "kv_heads")
