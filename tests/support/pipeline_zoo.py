"""Tiny denoisers of the pipelines of diffusers, with random weights and fixed inputs: a row of the table each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Denoiser:
    """A class of diffusers, a tiny configuration of it, and inputs for one call of its forward."""

    name: str
    kind: str
    config: dict[str, Any]
    inputs: Callable[[], dict[str, Any]]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _time(value: float = 0.5) -> Tensor:
    return torch.tensor([value])


def _flux_inputs(width: int = 16, joint: int = 32, axes: int = 3, **more: Any) -> dict[str, Any]:
    return {
        "hidden_states": noise(1, 16, width), "encoder_hidden_states": noise(1, 6, joint, seed=1), "timestep": _time(),
        "img_ids": _places(4, 4, axes), "txt_ids": torch.zeros(6, axes), **more,
    }


def _places(height: int, width: int, axes: int) -> Tensor:
    ids = torch.zeros(height, width, axes)
    ids[..., 1] += torch.arange(height)[:, None]
    ids[..., 2] += torch.arange(width)[None]
    return ids.reshape(height * width, axes)


_HEADS = {"attention_head_dim": 16, "num_attention_heads": 3}
_FLUX = {"in_channels": 16, "num_layers": 3, "num_single_layers": 3, **_HEADS, "joint_attention_dim": 32}

ZOO = (
    Denoiser(
        "Qwen-Image", "QwenImageTransformer2DModel",
        {"patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 3, **_HEADS, "joint_attention_dim": 32,
         "axes_dims_rope": (8, 4, 4)},
        lambda: {
            "hidden_states": noise(1, 16, 16), "encoder_hidden_states": noise(1, 6, 32, seed=1),
            "encoder_hidden_states_mask": torch.ones(1, 6), "timestep": _time(), "img_shapes": [[(1, 4, 4)]],
        },
    ),
    Denoiser(
        "Qwen-Image-Edit (2511)", "QwenImageTransformer2DModel",
        {"patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 3, **_HEADS, "joint_attention_dim": 32,
         "axes_dims_rope": (8, 4, 4), "zero_cond_t": True},
        lambda: {
            "hidden_states": noise(1, 32, 16), "encoder_hidden_states": noise(1, 6, 32, seed=1),
            "encoder_hidden_states_mask": torch.ones(1, 6), "timestep": _time(),
            "img_shapes": [[(1, 4, 4), (1, 4, 4)]],
        },
    ),
    Denoiser(
        "FLUX.1", "FluxTransformer2DModel", {**_FLUX, "pooled_projection_dim": 8, "axes_dims_rope": (4, 4, 8)},
        lambda: _flux_inputs(pooled_projections=noise(1, 8, seed=2)),
    ),
    Denoiser(
        "FLUX.2", "Flux2Transformer2DModel",
        {**_FLUX, "timestep_guidance_channels": 16, "axes_dims_rope": (4, 4, 4, 4)},
        lambda: _flux_inputs(axes=4, guidance=torch.tensor([3.5])),
    ),
    Denoiser(
        "Stable Diffusion 3", "SD3Transformer2DModel",
        {"sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 3, **_HEADS, "joint_attention_dim": 32,
         "caption_projection_dim": 48, "pooled_projection_dim": 8, "pos_embed_max_size": 8},
        lambda: {
            "hidden_states": noise(1, 4, 8, 8), "encoder_hidden_states": noise(1, 6, 32, seed=1),
            "pooled_projections": noise(1, 8, seed=2), "timestep": _time(500.0),
        },
    ),
    Denoiser(
        "Stable Diffusion 3.5 (two attentions)", "SD3Transformer2DModel",
        {"sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 3, **_HEADS, "joint_attention_dim": 32,
         "caption_projection_dim": 48, "pooled_projection_dim": 8, "pos_embed_max_size": 8,
         "dual_attention_layers": (0, 1), "qk_norm": "rms_norm"},
        lambda: {
            "hidden_states": noise(1, 4, 8, 8), "encoder_hidden_states": noise(1, 6, 32, seed=1),
            "pooled_projections": noise(1, 8, seed=2), "timestep": _time(500.0),
        },
    ),
    Denoiser(
        "Z-Image", "ZImageTransformer2DModel",
        {"in_channels": 4, "dim": 48, "n_layers": 3, "n_refiner_layers": 2, "n_heads": 3, "n_kv_heads": 3,
         "cap_feat_dim": 32, "axes_dims": [4, 4, 8], "axes_lens": [64, 32, 32]},
        lambda: {"x": [noise(4, 1, 8, 8)], "t": _time(), "cap_feats": [noise(6, 32, seed=1)]},
    ),
    Denoiser(
        "Sana", "SanaTransformer2DModel",
        {"in_channels": 4, "out_channels": 4, "num_attention_heads": 3, "attention_head_dim": 16, "num_layers": 3,
         "num_cross_attention_heads": 3, "cross_attention_head_dim": 16, "cross_attention_dim": 48,
         "caption_channels": 32, "sample_size": 8},
        lambda: {
            "hidden_states": noise(1, 4, 8, 8), "encoder_hidden_states": noise(1, 6, 32, seed=1),
            "timestep": _time(500.0),
        },
    ),
    Denoiser(
        "PixArt", "PixArtTransformer2DModel",
        {"num_attention_heads": 3, "attention_head_dim": 16, "in_channels": 4, "out_channels": 8, "num_layers": 3,
         "cross_attention_dim": 48, "caption_channels": 32, "sample_size": 8},
        lambda: {
            "hidden_states": noise(1, 4, 8, 8), "encoder_hidden_states": noise(1, 6, 32, seed=1),
            "timestep": _time(500.0), "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
    ),
    Denoiser(
        "Lumina 2", "Lumina2Transformer2DModel",
        {"sample_size": 8, "in_channels": 4, "hidden_size": 48, "num_layers": 3, "num_refiner_layers": 2,
         "num_attention_heads": 3, "num_kv_heads": 1, "multiple_of": 16, "axes_dim_rope": (4, 4, 8),
         "axes_lens": (64, 32, 32), "cap_feat_dim": 32},
        lambda: {
            "hidden_states": noise(1, 4, 8, 8), "encoder_hidden_states": noise(1, 6, 32, seed=1),
            "encoder_attention_mask": torch.ones(1, 6, dtype=torch.bool), "timestep": _time(),
        },
    ),
    Denoiser(
        "HunyuanImage", "HunyuanImageTransformer2DModel",
        {"in_channels": 4, "out_channels": 4, **_HEADS, "num_layers": 3, "num_single_layers": 3,
         "num_refiner_layers": 2, "text_embed_dim": 32, "rope_axes_dim": (8, 8)},
        lambda: {
            "hidden_states": noise(1, 4, 4, 4), "encoder_hidden_states": noise(1, 6, 32, seed=1),
            "encoder_attention_mask": torch.ones(1, 6, dtype=torch.bool), "timestep": _time(500.0),
        },
    ),
    Denoiser(
        "GLM-Image", "GlmImageTransformer2DModel",
        {"in_channels": 4, "out_channels": 4, "num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 3,
         "text_embed_dim": 32, "time_embed_dim": 16, "condition_dim": 8, "prior_vq_quantizer_codebook_size": 32},
        lambda: {
            "hidden_states": noise(1, 4, 8, 8), "encoder_hidden_states": noise(1, 6, 32, seed=1),
            "prior_token_id": torch.arange(16)[None], "prior_token_drop": torch.zeros(1, 16, dtype=torch.bool),
            "timestep": _time(500.0), "target_size": torch.tensor([[64.0, 64.0]]),
            "crop_coords": torch.zeros(1, 2),
        },
    ),
    Denoiser(
        "Wan", "WanTransformer3DModel",
        {"num_attention_heads": 3, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "text_dim": 32,
         "freq_dim": 16, "ffn_dim": 64, "num_layers": 3, "rope_max_seq_len": 32},
        lambda: {
            "hidden_states": noise(1, 4, 1, 8, 8), "encoder_hidden_states": noise(1, 6, 32, seed=1),
            "timestep": _time(500.0),
        },
    ),
    Denoiser(
        "CogView4", "CogView4Transformer2DModel",
        {"in_channels": 4, "out_channels": 4, "num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 3,
         "text_embed_dim": 32, "time_embed_dim": 16, "condition_dim": 8, "pos_embed_max_size": 8, "sample_size": 8,
         "rope_axes_dim": (8, 8)},
        lambda: {
            "hidden_states": noise(1, 4, 8, 8), "encoder_hidden_states": noise(1, 6, 32, seed=1),
            "timestep": _time(500.0), "original_size": torch.tensor([[64.0, 64.0]]),
            "target_size": torch.tensor([[64.0, 64.0]]), "crop_coords": torch.zeros(1, 2),
        },
    ),
    Denoiser(
        "AuraFlow", "AuraFlowTransformer2DModel",
        {"sample_size": 8, "in_channels": 4, "out_channels": 4, "num_mmdit_layers": 3, "num_single_dit_layers": 3,
         "attention_head_dim": 16, "num_attention_heads": 3, "joint_attention_dim": 32, "caption_projection_dim": 48,
         "pos_embed_max_size": 64},
        lambda: {
            "hidden_states": noise(1, 4, 8, 8), "encoder_hidden_states": noise(1, 6, 32, seed=1), "timestep": _time(),
        },
    ),
    Denoiser(
        "Chroma", "ChromaTransformer2DModel",
        {**_FLUX, "axes_dims_rope": (4, 4, 8), "approximator_num_channels": 16, "approximator_hidden_dim": 32,
         "approximator_layers": 2},
        lambda: _flux_inputs(attention_mask=torch.ones(1, 22)),
    ),
    Denoiser(
        "LTX-Video", "LTXVideoTransformer3DModel",
        {"in_channels": 8, "out_channels": 8, "num_attention_heads": 3, "attention_head_dim": 16,
         "cross_attention_dim": 48, "num_layers": 3, "caption_channels": 32},
        lambda: {
            "hidden_states": noise(1, 16, 8), "encoder_hidden_states": noise(1, 6, 32, seed=1),
            "timestep": _time(500.0), "encoder_attention_mask": torch.ones(1, 6), "num_frames": 1, "height": 4,
            "width": 4,
        },
    ),
    Denoiser(
        "PRX", "PRXTransformer2DModel",
        {"in_channels": 4, "context_in_dim": 32, "hidden_size": 48, "num_heads": 3, "depth": 3, "axes_dim": [8, 8]},
        lambda: {
            "hidden_states": noise(1, 4, 8, 8), "encoder_hidden_states": noise(1, 6, 32, seed=1), "timestep": _time(),
        },
    ),
    Denoiser(
        "Bria", "BriaTransformer2DModel",
        {**_FLUX, "pooled_projection_dim": 0, "axes_dims_rope": [4, 4, 8]}, _flux_inputs,
    ),
    Denoiser("Ovis-Image", "OvisImageTransformer2DModel", {**_FLUX, "out_channels": 16, "axes_dims_rope": (4, 4, 8)},
             _flux_inputs),
    Denoiser(
        "LongCat-Image", "LongCatImageTransformer2DModel",
        {**_FLUX, "pooled_projection_dim": 32, "axes_dims_rope": [4, 4, 8]}, _flux_inputs,
    ),
    Denoiser(
        "HunyuanVideo", "HunyuanVideoTransformer3DModel",
        {"in_channels": 4, "out_channels": 4, **_HEADS, "num_layers": 3, "num_single_layers": 3,
         "num_refiner_layers": 2, "text_embed_dim": 32, "pooled_projection_dim": 8, "rope_axes_dim": (4, 4, 8)},
        lambda: {
            "hidden_states": noise(1, 4, 1, 8, 8), "encoder_hidden_states": noise(1, 6, 32, seed=1),
            "encoder_attention_mask": torch.ones(1, 6), "pooled_projections": noise(1, 8, seed=2),
            "timestep": torch.tensor([500]), "guidance": torch.tensor([6000.0]),
        },
    ),
    Denoiser(
        "CogVideoX", "CogVideoXTransformer3DModel",
        {"num_attention_heads": 3, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "time_embed_dim": 16,
         "text_embed_dim": 32, "num_layers": 3, "sample_width": 8, "sample_height": 8, "sample_frames": 1,
         "max_text_seq_length": 6},
        lambda: {
            "hidden_states": noise(1, 1, 4, 8, 8), "encoder_hidden_states": noise(1, 6, 32, seed=1),
            "timestep": _time(500.0),
        },
    ),
    Denoiser(
        "DiT", "DiTTransformer2DModel",
        {"num_attention_heads": 3, "attention_head_dim": 16, "in_channels": 4, "num_layers": 3, "sample_size": 8,
         "num_embeds_ada_norm": 10},
        lambda: {
            "hidden_states": noise(1, 4, 8, 8), "timestep": torch.tensor([500]), "class_labels": torch.tensor([3]),
        },
    ),
)
