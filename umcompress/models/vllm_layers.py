"""Qwen2 in vLLM with layers that differ.  vLLM imports this when it builds such a model; nothing of ours does."""

from __future__ import annotations

import copy
from typing import Any
from unittest.mock import patch

import vllm.model_executor.models.qwen2 as qwen2
from torch import Tensor
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.model_executor.models.utils import extract_layer_index

from umcompress.models.bagel.served_experts import ServedExperts
from umcompress.models.vllm_plugin import LAYERS


class Layer(qwen2.Qwen2DecoderLayer):  # type: ignore[misc]  # vLLM may be absent, and then this is Any
    """A layer as wide as the list says, without what it says is not there."""

    def __init__(self, config: Any, cache_config: Any = None, quant_config: Any = None, prefix: str = "") -> None:
        said = getattr(config, LAYERS)[extract_layer_index(prefix)]
        own = copy.copy(config)
        own.intermediate_size = said["channels"] or 1
        super().__init__(own, cache_config, quant_config, prefix)
        self.has_attention, self.has_feed_forward = bool(said["attention"]), bool(said["channels"])
        if "experts" in said:
            self.mlp, self.has_feed_forward = ServedExperts(config.hidden_size, said["experts"]), True
        if not self.has_attention:
            # Else vLLM would keep keys and values for it.
            get_current_vllm_config().compilation_config.static_forward_context.pop(f"{prefix}.self_attn.attn")
            del self.self_attn, self.input_layernorm
        if not self.has_feed_forward:
            del self.mlp, self.post_attention_layernorm

    def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """The stream is `hidden_states + residual`, (T, H) each; norms add the two, and return the sum as residual."""
        if self.has_attention:
            hidden_states, residual = _normed(self.input_layernorm, hidden_states, residual)
            hidden_states = self.self_attn(positions=positions, hidden_states=hidden_states)
        if self.has_feed_forward:
            hidden_states, residual = _normed(self.post_attention_layernorm, hidden_states, residual)
            hidden_states = self.mlp(hidden_states)
        assert residual is not None
        return hidden_states, residual


def _normed(norm: Any, hidden_states: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    if residual is None:
        return norm(hidden_states), hidden_states
    found: tuple[Tensor, Tensor] = norm(hidden_states, residual)
    return found


class LayeredQwen2Model(qwen2.Qwen2Model):  # type: ignore[misc]
    """vLLM's model, of such layers."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, decoder_layer_type=Layer)


class LayeredQwen2ForCausalLM(qwen2.Qwen2ForCausalLM):  # type: ignore[misc]
    """vLLM's own where the configuration has no list of layers."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config.get_text_config()
        model = LayeredQwen2Model if getattr(config, LAYERS, None) else qwen2.Qwen2Model
        with patch.object(qwen2, "Qwen2Model", model):
            super().__init__(vllm_config=vllm_config, prefix=prefix)
