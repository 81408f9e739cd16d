"""Configuration fields that count or list layers. Extend these tables for a new architecture."""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from umcompress.graph.trace import is_attention

WIDTHS = ("intermediate_size", "ffn_dim", "n_inner", "mlp_dim", "ffn_hidden_size", "ffn_config", "d_ff")


# Of the expert beside a mixture that every token uses.
SHARED_WIDTH = "shared_expert_intermediate_size"


def width_field(config: Any) -> str | None:
    return next((name for name in WIDTHS if hasattr(config, name)), None)


COUNTS = ("num_hidden_layers", "depth", "num_layers", "n_layers", "n_layer", "encoder_layers", "decoder_layers",
          "num_blocks")  # fmt: skip


# One entry a layer.
_BY_LAYER = re.compile(r"_types?$|^no_rope_layers$|_per_layer$|_pattern$|^attention_layers$|_layers_mask$|^layers_")


# Layer numbers.
_NUMBERS = re.compile(
    r"^(mlp_only_layers|fullatt_block_indexes|deepstack_visual_indexes|cross_attention_layers|global_attn_layers|"
    r"look_ahead_layers|look_backward_layers)$|"
    r"layer_(indices|indexes|ids)$"
)


# What some configurations compute from other fields: a word for each layer.
_KINDS = ("layer_types", "layers_block_type")


# How many layers from the bottom differ from those above.
_BOUNDARIES = ("max_window_layers", "first_k_dense_replace")


# How many layers at the top do.
_FROM_THE_TOP = ("num_kv_shared_layers",)


# Of the module that runs the blocks: where those above begin.
_EDGES = ("first_kv_shared_layer_idx",)


_COMPUTED = "_umcompress_computed"


_LAST = ("down_proj", "fc2", "c_proj", "w2", "linear2", "dense_4h_to_h")


def owner_of(model: PreTrainedModel, path: str) -> tuple[nn.Module, Any]:
    """The module that runs the blocks of a stack, and the configuration that it reads."""
    parent = path.rpartition(".")[0]
    while parent and not hasattr(model.get_submodule(parent), "config"):
        parent = parent.rpartition(".")[0]
    owner = model.get_submodule(path.rpartition(".")[0])
    return owner, model.get_submodule(parent).config


def count_field(config: Any, path: str, layers: int) -> str | None:
    """The field of a configuration that says how many blocks the stack at `path` has."""
    sides = [name for name in ("encoder", "decoder") if name in path.split(".")]
    side = [field for name in sides for field in (f"{name}_layers", f"num_{name}_layers")]
    side += ["num_global_layers"] if _is_second(path) else []
    fields = [*side, *COUNTS]
    return next((name for name in fields if getattr(config, name, None) == layers), None)


def _is_second(path: str) -> bool:
    """Whether a stack works on all tiles of a picture, above another one of the same configuration (Llama 3.2)."""
    return "global_transformer" in path.split(".")


def say(config: Any, name: str, value: list[str]) -> None:
    """Set a field. Where the configuration computes it from others, which no longer say it, this instance says it."""
    if getattr(config, name, value) == value:
        return
    own: Any = type(config)
    where = own.attribute_map.get(name, name)
    if not isinstance(computed := getattr(own, where, None), property) or computed.fset is not None:
        setattr(config, name, value)
        return
    kept = tuple(value)
    config.__class__ = type(own.__name__, (own,), {where: property(lambda _: list(kept)), _COMPUTED: unsaid(own)})


def unsaid(own: Any) -> Any:
    """The class of a configuration as transformers has it, which computes what `say` has set."""
    return getattr(own, _COMPUTED, own)


def _mixers(block: nn.Module) -> list[Any]:
    """The parts of a block that have a slot of the cache."""
    return [
        module for module in block.modules()
        if isinstance(getattr(module, "layer_idx", None), int)
        and module is not block and is_attention(module)
    ]  # fmt: skip


_ELSEWHERE = "leave these blocks out: `layers` of the step says which may go"
