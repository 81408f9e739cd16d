"""Pico models of transformers, one for each architecture of the support table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import transformers as hf
from transformers import PreTrainedModel

TEXT: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 16,
    "patch_size": 4,
}  # fmt: skip
MIXED = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}


@dataclass(frozen=True)
class Entry:
    """One architecture: how to build it, and which stacks it has."""

    build: Callable[[], PreTrainedModel]
    stacks: tuple[str, ...] = ("main",)
    speaks: bool = True


def _lm(model: str, config: str, **changes: Any) -> PreTrainedModel:
    made: PreTrainedModel = getattr(hf, model)(getattr(hf, config)(**(TEXT | changes)))
    return made


def _gpt2() -> PreTrainedModel:
    sizes: dict[str, Any] = {"vocab_size": 96, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
    sizes["n_inner"] = 48
    return hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))


def _opt() -> PreTrainedModel:
    sizes = {"ffn_dim": 48, "word_embed_proj_dim": 32} | TEXT
    del sizes["intermediate_size"], sizes["num_key_value_heads"]
    return hf.OPTForCausalLM(hf.OPTConfig(**sizes))


def _gpt_neox() -> PreTrainedModel:
    sizes = dict(TEXT)
    del sizes["num_key_value_heads"]
    return hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**sizes))


def _falcon() -> PreTrainedModel:
    """Groups, each with its queries, key and value in one linear."""
    sizes = TEXT | {"ffn_hidden_size": 48, "num_kv_heads": 2, "new_decoder_architecture": True}
    del sizes["num_key_value_heads"], sizes["intermediate_size"]
    return hf.FalconForCausalLM(hf.FalconConfig(**sizes))


def _deepseek_v3() -> PreTrainedModel:
    """A dense layer, then mixtures with a shared expert; queries and keys through narrow bottlenecks."""
    heads = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    experts = {
        "moe_intermediate_size": 16, "n_routed_experts": 4, "n_shared_experts": 2, "num_experts_per_tok": 2,
        "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
    }  # fmt: skip
    return _lm("DeepseekV3ForCausalLM", "DeepseekV3Config", num_key_value_heads=4, **heads, **experts)


def _qwen2_5_vl() -> PreTrainedModel:
    vision = {
        "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 4, "window_size": 16,
        "fullatt_block_indexes": [1], "out_hidden_size": 32, "spatial_merge_size": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    text = TEXT | {"rope_parameters": MROPE}
    ids: dict[str, Any] = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92}
    ids["vision_end_token_id"] = 93
    return hf.Qwen2_5_VLForConditionalGeneration(hf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))


def _siglip() -> PreTrainedModel:
    return hf.SiglipVisionModel(hf.SiglipVisionConfig(**VISION))


def _clip() -> PreTrainedModel:
    text = {**TEXT, "num_hidden_layers": 3}
    del text["num_key_value_heads"]
    return hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16))


def _janus() -> PreTrainedModel:
    vision = VISION | {"mlp_ratio": 1.5, "num_image_tokens": 16, "projection_dim": 32, "depth": 1}
    del vision["intermediate_size"]
    codes = {
        "embed_dim": 8, "num_embeddings": 32, "latent_channels": 8, "base_channels": 32, "channel_multiplier": [1, 1],
        "num_res_blocks": 1, "projection_dim": 32, "image_token_embed_dim": 32, "num_patches": 4,
        "num_hidden_layers": 2,
    }  # fmt: skip
    text = TEXT | {"model_type": "llama"}
    config = hf.JanusConfig(text_config=text, vision_config=vision, vq_config=codes, image_token_id=90)
    return hf.JanusForConditionalGeneration(config)


def _emu3() -> PreTrainedModel:
    codes = {
        "codebook_size": 16, "embed_dim": 4, "latent_channels": 4, "base_channels": 32, "channel_multiplier": [1, 1],
        "attn_resolutions": [1], "hidden_size": 32, "temporal_downsample_factor": 1, "num_res_blocks": 1,
        "num_attention_heads": 1,
    }  # fmt: skip
    names = {f"<|visual token {index:06d}|>": 60 + index for index in range(16)}
    words = names | {"<image>": 90, "<|extra_200|>": 91}
    return hf.Emu3ForConditionalGeneration(hf.Emu3Config(vq_config=codes, text_config=TEXT, vocabulary_map=words))


def _chameleon() -> PreTrainedModel:
    codes = {
        "embed_dim": 16, "num_embeddings": 16, "latent_channels": 16, "resolution": 16, "base_channels": 32,
        "channel_multiplier": [1, 2], "num_res_blocks": 1,
    }  # fmt: skip
    names = {f"IMGIMG{chr(65 + index // 10)}{chr(65 + index % 10)}Z": 60 + index for index in range(16)}
    words = names | {"<image>": 90}
    sizes: dict[str, Any] = TEXT | {"vq_config": codes, "vocabulary_map": words, "image_token_id": 90}
    config = hf.ChameleonConfig(**sizes)
    return hf.ChameleonForConditionalGeneration(config)


def _internvl() -> PreTrainedModel:
    vision = VISION | {"image_size": [16, 16], "patch_size": [4, 4]}
    text = {**TEXT, "model_type": "qwen2"}
    config = hf.InternVLConfig(text_config=text, vision_config=vision, image_token_id=90, image_seq_length=4)
    return hf.InternVLForConditionalGeneration(config)


_SLIDING = {"sliding_window": 4, "layer_types": MIXED, "head_dim": 8, "query_pre_attn_scalar": 8}
ZOO: dict[str, Entry] = {
    "llama": Entry(partial(_lm, "LlamaForCausalLM", "LlamaConfig")),
    "mistral": Entry(partial(_lm, "MistralForCausalLM", "MistralConfig", sliding_window=4)),
    "qwen2": Entry(partial(_lm, "Qwen2ForCausalLM", "Qwen2Config", use_sliding_window=True, sliding_window=4,
                           max_window_layers=2, tie_word_embeddings=True)),
    "qwen3": Entry(partial(_lm, "Qwen3ForCausalLM", "Qwen3Config", head_dim=16, tie_word_embeddings=True)),
    "gemma2": Entry(partial(_lm, "Gemma2ForCausalLM", "Gemma2Config", **_SLIDING)),
    "gemma3": Entry(partial(_lm, "Gemma3ForCausalLM", "Gemma3TextConfig", **_SLIDING)),
    "phi3": Entry(partial(_lm, "Phi3ForCausalLM", "Phi3Config", sliding_window=None)),
    "gpt2": Entry(_gpt2),
    "opt": Entry(_opt),
    "olmo2": Entry(partial(_lm, "Olmo2ForCausalLM", "Olmo2Config")),
    "mixtral": Entry(partial(_lm, "MixtralForCausalLM", "MixtralConfig", num_local_experts=4, sliding_window=None)),
    "qwen3_moe": Entry(partial(_lm, "Qwen3MoeForCausalLM", "Qwen3MoeConfig", head_dim=16, num_experts=4,
                               num_experts_per_tok=2, moe_intermediate_size=16, mlp_only_layers=[1])),
    "qwen2_moe": Entry(partial(_lm, "Qwen2MoeForCausalLM", "Qwen2MoeConfig", num_experts=4, num_experts_per_tok=2,
                               moe_intermediate_size=16, shared_expert_intermediate_size=24)),
    "deepseek_v3": Entry(_deepseek_v3),
    "qwen2_5_vl": Entry(_qwen2_5_vl, ("main", "model.visual.blocks")),
    "siglip": Entry(_siglip, speaks=False),
    "clip": Entry(_clip, ("main", "vision_model.encoder.layers"), speaks=False),
    "janus": Entry(_janus, ("main", "model.vision_model.encoder.layers")),
    "emu3": Entry(_emu3),
    "chameleon": Entry(_chameleon),
    "internvl": Entry(_internvl, ("main", "model.vision_tower.encoder.layer")),
    "granite": Entry(partial(_lm, "GraniteForCausalLM", "GraniteConfig")),
    "cohere": Entry(partial(_lm, "CohereForCausalLM", "CohereConfig", use_qk_norm=False)),
    "gpt_neox": Entry(_gpt_neox),
    "falcon": Entry(_falcon),
}  # fmt: skip
