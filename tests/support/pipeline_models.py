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


def pixart(folder: Path, scheduler: str = "DDPMScheduler", **options: Any) -> Path:
    """A PixArt: an encoder of T5, a transformer that predicts noise (and a variance beside it), an autoencoder."""
    import transformers as hf

    diffusers = _diffusers()
    torch.manual_seed(0)
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
        cross_attention_dim=16, caption_channels=24, sample_size=32, norm_elementwise_affine=False,
        norm_type="ada_norm_single",
    )  # fmt: skip
    config = hf.T5Config(vocab_size=264, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2, pad_token_id=256)
    pipeline = diffusers.PixArtSigmaPipeline(
        scheduler=getattr(diffusers, scheduler)(**options), vae=_pictures(shift=0.0), transformer=transformer.eval(),
        text_encoder=hf.T5EncoderModel(config), tokenizer=_tokenizer(),
    )  # fmt: skip
    awaken(transformer)
    pipeline.save_pretrained(folder)
    return folder


def z_image(folder: Path) -> Path:
    """A Z-Image: an encoder of Qwen3, and a transformer whose time and velocity run the other way."""
    import transformers as hf

    diffusers = _diffusers()
    torch.manual_seed(0)
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=48, n_layers=2, n_refiner_layers=1, n_heads=3, n_kv_heads=3, cap_feat_dim=32,
        axes_dims=[4, 4, 8], axes_lens=[1024, 32, 32],
    )  # fmt: skip
    awaken(transformer)
    tokenizer = _tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    text = hf.Qwen3Config(
        vocab_size=264, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=1024,
    )  # fmt: skip
    pipeline = diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), vae=_pictures(shift=0.1, levels=2),
        text_encoder=hf.Qwen3Model(text), tokenizer=tokenizer, transformer=transformer.eval(),
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def _pictures(shift: float, levels: int = 4) -> Any:
    """An autoencoder of pictures, 4 channels; it halves a picture at each level but the last."""
    return _diffusers().AutoencoderKL(
        latent_channels=4, block_out_channels=[8] * levels, norm_num_groups=4, layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * levels, up_block_types=["UpDecoderBlock2D"] * levels,
        scaling_factor=0.4, shift_factor=shift,
    )  # fmt: skip


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
