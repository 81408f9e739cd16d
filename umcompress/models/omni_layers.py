"""BAGEL in vLLM-Omni with layers that differ.  vLLM-Omni imports this when it builds one; nothing of ours does."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
import vllm_omni.diffusion.models.bagel.bagel_transformer as bagel
from torch import Tensor, nn
from vllm_omni.diffusion.models.bagel.pipeline_bagel import (
    BagelPipeline,
    get_bagel_post_process_func,
    get_bagel_pre_process_func,
)

from umcompress.models.bagel.served_experts import ServedExperts
from umcompress.models.vllm_plugin import GENERATION, LAYERS

# vLLM-Omni looks for these two beside the pipeline.
__all__ = ["LayeredBagelPipeline", "get_bagel_post_process_func", "get_bagel_pre_process_func"]


class NoFeedForward(nn.Module):
    """What adds nothing to the stream."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Layer(bagel.Qwen2MoTDecoderLayer):  # type: ignore[misc]  # vLLM-Omni may be absent, and then this is Any
    """A layer whose two feed-forwards are what the list says."""

    def __init__(self, config: Any, layer_idx: int, *, prefix: str = "", **more: Any) -> None:
        super().__init__(config, layer_idx, prefix=prefix, **more)
        said = getattr(config, LAYERS)[layer_idx]
        quantization = more.get("quant_config")
        self.mlp = _feed_forward(config, said, f"{prefix}.mlp", quantization)
        self.mlp_moe_gen = _feed_forward(config, said[GENERATION], f"{prefix}.mlp_moe_gen", quantization)


def _feed_forward(config: Any, said: dict[str, Any], prefix: str, quantization: Any) -> nn.Module:
    if "experts" in said:
        return ServedExperts(config.hidden_size, said["experts"])
    if not said["channels"]:
        return NoFeedForward()
    made: nn.Module = bagel.BagelMLP(
        config.hidden_size, said["channels"], config.hidden_act, quant_config=quantization, prefix=prefix
    )
    return made


_THEIRS = bagel.Qwen2MoTDecoderLayer


def _layer(config: Any, layer_idx: int, **more: Any) -> nn.Module:
    kind: Any = Layer if getattr(config, LAYERS, None) else _THEIRS
    made: nn.Module = kind(config, layer_idx, **more)
    return made


class LayeredBagelPipeline(BagelPipeline):  # type: ignore[misc]
    """vLLM-Omni's own where `llm_config.json` has no list of layers."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        with patch.object(bagel, "Qwen2MoTDecoderLayer", _layer):
            super().__init__(*arguments, **named)
