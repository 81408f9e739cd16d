"""Tiny pipelines of diffusers with random weights: Qwen-Image whole, others as far as the tests need them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip


def qwen_image(folder: Path, blocks: int = 3, layers: int = 4, seed: int = 0) -> Path:
    """A whole Qwen-Image: Qwen2.5-VL as text encoder, a transformer of dual-stream blocks, an autoencoder."""
    diffusers = _diffusers()
    torch.manual_seed(seed)
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=blocks, attention_head_dim=16, num_attention_heads=3,
        joint_attention_dim=32, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    awaken(transformer)
    pipeline = diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=_autoencoder(), transformer=transformer,
        text_encoder=_text_encoder(layers), tokenizer=_tokenizer(),
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def _diffusers() -> Any:
    """The library, which has no types."""
    return importlib.import_module("diffusers")


def awaken(module: nn.Module) -> None:
    """Weights that are zero when a model is built, so that it paints noise, get values; so do small ones."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.7 / parameter[0].numel() ** 0.5)
            elif not parameter.any():
                parameter.normal_(std=0.05)


def _text_encoder(layers: int) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ids = {token: 256 + place for place, token in enumerate(SPECIALS)}
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers, "num_attention_heads": 2,
            "num_key_value_heads": 1, "vocab_size": 264, "max_position_embeddings": 2048,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3], "rope_type": "default"},
            "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"], "tie_word_embeddings": False,
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 14,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112, "fullatt_block_indexes": [1],
            "out_hidden_size": 32,
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )  # fmt: skip
    model: Any = Qwen2_5_VLForConditionalGeneration(config)
    model.eval()
    awaken(model)
    return model


def _tokenizer() -> Any:
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    characters: Any = bytes_to_unicode
    vocab = {char: place for place, char in enumerate(characters().values())}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIALS)})
    return tokenizer


def _autoencoder() -> Any:
    diffusers = _diffusers()
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip


def config_of(folder: Path, part: str) -> dict[str, Any]:
    """The configuration of a part of a pipeline's folder."""
    return dict(json.loads((folder / part / "config.json").read_text()))
