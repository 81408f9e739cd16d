"""A Llama, Mistral or Qwen2 whose layers differ, in a layout that vLLM serves as it is: DeciLM.

vLLM builds each layer from `block_configs[i]`: the width of its feed-forward, how many query heads share a key-value
head, and `no_op` where the layer has no attention or no feed-forward.  All layers have as many query heads.  It brings
no class for the configuration, so the folder has one, and is opened with `trust_remote_code`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from umcompress.checkpoint.writer import TensorToWrite
from umcompress.models.hf.export import mixtures
from umcompress.models.hf.load import weights
from umcompress.models.hf.load.skeleton import BASE_CONFIG
from umcompress.models.hf.names import CONFIG, WEIGHTS
from umcompress.models.plain_folder import Plain

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
CLASS_FILE = "configuration_decilm.py"
NOTE = "a DeciLM folder: vllm serve FOLDER --trust-remote-code"
_TAKEN_OVER = (
    "vocab_size", "hidden_size", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings",
    "hidden_act", "bos_token_id", "eos_token_id", "pad_token_id", "initializer_range",
)  # fmt: skip
_QUERY_KEY_VALUE = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class Layer:
    """What a layer has: query and key-value heads, feed-forward channels; none of a branch that was dropped."""

    heads: int = 0
    groups: int = 0
    channels: int = 0

    def fields(self) -> dict[str, dict[str, Any]]:
        """The layer's entry in `block_configs`."""
        attention = {"no_op": not self.heads, "n_heads_in_group": self.heads // self.groups if self.groups else None}
        return {
            "attention": attention,
            "ffn": {"no_op": not self.channels, "intermediate_size": self.channels or None},
        }


def has_heads_of_their_own_size(model: PreTrainedModel) -> bool:
    """Whether vLLM would build other heads: its Qwen2 divides the hidden size by their number, and knows no other."""
    if type(model).__name__ != "Qwen2ForCausalLM":
        return False
    attentions = [getattr(block, "self_attn", None) for block in model.get_submodule("model.layers").children()]
    hidden = model.config.hidden_size
    return any(attention is not None and attention.q_proj.weight.shape[0] != hidden for attention in attentions)


def decilm_folder(model: PreTrainedModel, values: Mapping[str, TensorToWrite] | None = None) -> Plain | str:
    """The folder of `model`, or why this layout cannot hold it.  values: the tensors of a skeleton."""
    name = type(model).__name__
    if name not in ARCHITECTURES or type(model).is_custom_code():
        return f"DeciLM is a Llama's layout, for {', '.join(ARCHITECTURES)}; this is a {name}"
    if mixtures.is_split(model):
        return "DeciLM has no experts"
    blocks = list(model.get_submodule("model.layers").children())
    head_dim = getattr(model.config, "head_dim", None) or (
        model.config.hidden_size // model.config.num_attention_heads
    )
    layers = [_layer(block, head_dim) for block in blocks]
    biases = _biases(blocks)
    if reasons := [*_unlike_a_llama(model, layers), *_uneven_biases(blocks)]:
        return f"DeciLM cannot hold it: {'; '.join(reasons)}"
    heads = max(layer.heads for layer in layers)
    config = {field: found for field in _TAKEN_OVER if (found := getattr(model.config, field, None)) is not None}
    config |= {
        "architectures": ["DeciLMForCausalLM"],
        "model_type": "nemotron-nas",
        "auto_map": {"AutoConfig": f"{Path(CLASS_FILE).stem}.DeciLMConfig"},
        "dtype": str(model.dtype).removeprefix("torch."),
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads,
        "num_key_value_heads": max(layer.groups for layer in layers),
        "head_dim": head_dim,
        "intermediate_size": max(layer.channels for layer in layers),
        "attention_bias": "o_proj" in biases,
        "qkv_bias": "q_proj" in biases,
        "mlp_bias": "down_proj" in biases,
        "block_configs": [layer.fields() for layer in layers],
    }
    texts = {
        CONFIG: json.dumps(config, indent=2, sort_keys=True) + "\n",
        CLASS_FILE: Path(__file__).with_name(CLASS_FILE).read_text(encoding="utf-8"),
    }
    files = {WEIGHTS: weights.sources(model, values)}
    return Plain(files, texts, frozenset({BASE_CONFIG}), note=NOTE, opens_here=False)


def _layer(block: nn.Module, head_dim: int) -> Layer:
    """What a layer has, by the shapes of its linears."""
    attention, feed_forward = getattr(block, "self_attn", None), getattr(block, "mlp", None)
    heads, groups = (
        (attention.q_proj.weight.shape[0] // head_dim, attention.k_proj.weight.shape[0] // head_dim)
        if attention is not None
        else (0, 0)
    )
    return Layer(heads, groups, feed_forward.down_proj.weight.shape[1] if feed_forward is not None else 0)


def _unlike_a_llama(model: PreTrainedModel, layers: list[Layer]) -> Iterator[str]:
    """What vLLM's DeciLM does otherwise than `model`."""
    config = model.config
    if not layers[0].heads:
        yield "vLLM begins with an attention, and block 0 has none (layer_drop: layers: inner)"
    counts = sorted({layer.heads for layer in layers} - {0})
    if len(counts) > 1:
        yield f"layers have {', '.join(map(str, counts))} query heads, and it has one number for all (uniform: true)"
    if getattr(config, "hidden_act", "silu") not in ("silu", "swish"):
        yield f"its feed-forwards use silu, these {config.hidden_act}"
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        yield "attentions look at a sliding window"
    window = getattr(config, "sliding_window", None)
    slides = getattr(config, "use_sliding_window", True)
    if window is not None and slides and window < config.max_position_embeddings:
        yield f"attentions look at a window of {window} tokens"


def _linears(block: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for path, module in block.named_modules():
        if isinstance(module, nn.Linear):
            yield path.rpartition(".")[2], module


def _biases(blocks: list[nn.Module]) -> set[str]:
    """The linears that have a bias, in any layer."""
    return {name for block in blocks for name, linear in _linears(block) if linear.bias is not None}


def _uneven_biases(blocks: list[nn.Module]) -> Iterator[str]:
    """Biases that some linears have and others lack, where one flag stands for all of them."""
    with_bias = _biases(blocks)
    for together in (_QUERY_KEY_VALUE, ("gate_proj", "up_proj", "down_proj")):
        every = [linear for block in blocks for name, linear in _linears(block) if name in together]
        if with_bias & set(together) and any(linear.bias is None for linear in every):
            yield f"some of {', '.join(together)} have a bias and some have none"
    out = [linear for block in blocks for name, linear in _linears(block) if name == "o_proj"]
    if "o_proj" in with_bias and any(linear.bias is None for linear in out):
        yield "some attentions have an output bias and some have none"
