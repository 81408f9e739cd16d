"""Blocks that others depend on: asked before anything changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from umcompress.errors import PlanError
from umcompress.graph.lower import original_class
from umcompress.models.hf.family import TransformersFamily
from umcompress.models.hf.settle import SOURCES, SOURCES_BY_LAYER, count_field, fed, owner_of, read_beside, tapped

_ELSEWHERE = "leave these blocks out: `layers` of the step says which may go"


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


def _fed_by_vision(
    model: PreTrainedModel, owner: nn.Module, config: Any, stack: str, path: str, gone: set[int]
) -> None:
    """Qwen3-VL adds what some vision blocks see to the first language blocks, one to one: these have to stay.

    Granite Vision names the language blocks, Llama 3.2 those of the tower.
    """
    vision = getattr(model.config, "vision_config", None)
    sources = getattr(vision, "deepstack_visual_indexes", None) or ()
    bound = set(sources) if hasattr(owner, "deepstack_visual_indexes") else set()
    bound |= set(read_beside(config, path))
    if stack == TransformersFamily.main_stack:
        bound = set(range(len(sources))) | fed(model.config)
    elif config is vision and (taps := tapped(model.config)):
        count = len(model.get_submodule(path))  # type: ignore[arg-type]
        bound |= {tap % count for tap in taps}
    if lost := sorted(gone & bound):
        raise PlanError(
            f"drop blocks {', '.join(map(str, lost))} of {path}",
            f"what the vision tower sees goes through blocks {', '.join(map(str, sorted(bound)))} one to one",
            _ELSEWHERE,
        )


def _own_parts(config: Any, path: str, gone: set[int]) -> None:
    """Gemma: every layer has its columns of an embedding."""
    if getattr(config, "hidden_size_per_layer_input", None):
        raise PlanError(
            f"drop blocks {', '.join(map(str, sorted(gone)))} of {path}",
            "each block reads its own columns of the per-layer embedding (hidden_size_per_layer_input), which stay",
            "drop attentions instead (`unit: attention`), or prune channels and heads",
        )


def _lend(blocks: nn.ModuleList, config: Any, path: str, gone: set[int]) -> None:
    """Blocks above use its keys and values (Gemma), or the tokens that its indexer chose (GLM-5)."""
    sources = {
        vars(module)[name]: "keys and values"
        for index, block in enumerate(blocks) if index not in gone
        for module in block.modules() for name in SOURCES if type(vars(module).get(name)) is int
    }  # fmt: skip
    for index, source in enumerate(getattr(config, SOURCES_BY_LAYER, None) or ()):
        if index not in gone:
            sources[source] = "keys and values"
    kinds, chosen = getattr(config, "indexer_types", None) or [], 0
    for index, kind in enumerate(kinds):
        if kind != "shared":
            chosen = index
        elif index not in gone:
            sources[chosen] = "choice of tokens"
    if lost := sorted(gone & set(sources)):
        asked = f"drop blocks {', '.join(map(str, lost))} of {path}"
        raise PlanError(asked, f"blocks above use their {sources[lost[0]]}", _ELSEWHERE)


def _make_biases(blocks: nn.ModuleList, path: str, gone: set[int]) -> None:
    """T5: the first block makes the biases of positions for those above, which have none of their own."""
    made = [any(vars(part).get("has_relative_attention_bias") is True for part in block.modules()) for block in blocks]
    lost = [index for index in sorted(gone) if made[index]]
    if lost and not all(own for index, own in enumerate(made) if index not in gone):
        raise PlanError(
            f"drop blocks {', '.join(map(str, lost))} of {path}",
            "the blocks above use the biases of positions that it makes", _ELSEWHERE,
        )
