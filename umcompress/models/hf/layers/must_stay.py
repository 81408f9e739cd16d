"""Blocks that others depend on: asked before anything changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from umcompress.errors import PlanError
from umcompress.graph.lower import original_class
from umcompress.models.hf.layers.known_fields import count_field, owner_of
from umcompress.models.hf.layers.lent_layers import _lend, _make_biases
from umcompress.models.hf.layers.read_layers import _fed_by_vision


def check_removable(model: PreTrainedModel, stacks: Mapping[str, str], removed: Mapping[str, Sequence[int]]) -> None:
    """PlanError where one of the blocks at these positions has to stay."""
    for stack, path in stacks.items():
        blocks, gone = model.get_submodule(path), set(removed.get(stack, ()))
        assert isinstance(blocks, nn.ModuleList)
        if not gone:
            continue
        owner, config = owner_of(model, path)
        _fed_by_vision(model, owner, config, stack, path, gone)
        _beside(model, stacks, stack, removed)
        _own_parts(config, path, gone)
        _lend(blocks, config, path, gone)
        _make_biases(blocks, path, gone)


def _beside(
    model: PreTrainedModel, stacks: Mapping[str, str], stack: str, removed: Mapping[str, Sequence[int]]
) -> None:
    """Video-LLaVA has two towers of one configuration, which gives both as many blocks."""
    mine, gone = _counted(model, stacks[stack]), set(removed.get(stack, ()))
    for other, path in stacks.items():
        alike = other == stack or set(removed.get(other, ())) == gone
        if mine is not None and not alike and _counted(model, path) == mine:
            raise PlanError(
                f"drop blocks {', '.join(map(str, sorted(gone)))} of {stacks[stack]}",
                f"{path} has as many blocks by the same {mine[1]} of the configuration", "leave the blocks of both",
            )  # fmt: skip


def _counted(model: PreTrainedModel, path: str) -> tuple[int, str, Any] | None:
    """Which number of which configuration gives a stack its blocks, and their kind."""
    blocks, (_, config) = model.get_submodule(path), owner_of(model, path)
    assert isinstance(blocks, nn.ModuleList)
    field = count_field(config, path, len(blocks))
    return None if field is None else (id(config), field, original_class(blocks[0]))


def _own_parts(config: Any, path: str, gone: set[int]) -> None:
    """Gemma: every layer has its columns of an embedding."""
    if getattr(config, "hidden_size_per_layer_input", None):
        raise PlanError(
            f"drop blocks {', '.join(map(str, sorted(gone)))} of {path}",
            "each block reads its own columns of the per-layer embedding (hidden_size_per_layer_input), which stay",
            "drop attentions instead (`unit: attention`), or prune channels and heads",
        )
