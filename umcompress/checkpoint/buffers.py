"""Buffers that weight files hold beside the parameters, such as the balance of a router's experts (DeepSeek-V3)."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def saved_buffers(model: nn.Module) -> frozenset[str]:
    """Names of the persistent buffers of a model."""
    learned = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return frozenset(name for name in model.state_dict() if name not in learned)


def is_buffer(name: str, buffers: Collection[str]) -> bool:
    """Whether a name on disk is one of them; files may have more or less in front of it."""
    return any(name == own or name.endswith(f".{own}") or own.endswith(f".{name}") for own in buffers)
