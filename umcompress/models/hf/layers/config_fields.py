"""Find and set the fields of a configuration that speak of a stack."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from umcompress.graph.trace import is_attention
from umcompress.models.hf.layers.known_fields import COUNTS, SECOND_STACKS, SIDES, WIDTHS

_CLASS_BEFORE = "_umcompress_computed"


def owner_of(model: PreTrainedModel, path: str) -> tuple[nn.Module, Any]:
    """The module that runs the blocks of a stack, and the configuration that it reads."""
    parent = path.rpartition(".")[0]
    while parent and not hasattr(model.get_submodule(parent), "config"):
        parent = parent.rpartition(".")[0]
    owner = model.get_submodule(path.rpartition(".")[0])
    return owner, model.get_submodule(parent).config


def count_field(config: Any, path: str, layers: int) -> str | None:
    """The field of a configuration that says how many blocks the stack at `path` has, which are `layers`."""
    parts = path.split(".")
    own = [field for side in SIDES if side in parts for field in (f"{side}_layers", f"num_{side}_layers")]
    own += [field for name, field in SECOND_STACKS.items() if name in parts]
    return next((name for name in (*own, *COUNTS) if getattr(config, name, None) == layers), None)


def is_second_stack(path: str) -> bool:
    """Whether a stack runs above another one of the same configuration."""
    return any(name in path.split(".") for name in SECOND_STACKS)


def width_field(config: Any) -> str | None:
    """The field with the width of the feed-forwards."""
    return next((name for name in WIDTHS if hasattr(config, name)), None)


def set_field(config: Any, name: str, value: list[str]) -> None:
    """Set a field, also one that the configuration computes from others and that cannot be assigned.

    After an edit those others no longer give the right value. A property belongs to the class, so this one instance
    gets a subclass whose property returns `value`; `class_before` gives the class back, which is the one to write.
    """
    if getattr(config, name, value) == value:
        return
    own: Any = type(config)
    where = own.attribute_map.get(name, name)
    if not isinstance(computed := getattr(own, where, None), property) or computed.fset is not None:
        setattr(config, name, value)
        return
    kept = tuple(value)
    added = {where: property(lambda _: list(kept)), _CLASS_BEFORE: class_before(own)}
    config.__class__ = type(own.__name__, (own,), added)


def class_before(cls: Any) -> Any:
    """The class that a configuration had before `set_field` replaced it."""
    return getattr(cls, _CLASS_BEFORE, cls)


def cached_attentions(block: nn.Module) -> list[Any]:
    """The parts of a block that have a slot of the cache."""
    return [
        module for module in block.modules()
        if isinstance(getattr(module, "layer_idx", None), int)
        and module is not block and is_attention(module)
    ]  # fmt: skip
