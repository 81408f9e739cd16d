"""Layers that lend their keys and values, or their position biases, to other layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from umcompress.errors import PlanError
from umcompress.models.hf.layers.known_fields import _ELSEWHERE, _mixers

# A layer that others take keys and values from.
SOURCES = ("kv_shared_layer_index",)


# The same of a configuration: for each layer the one whose keys and values it uses, which may be itself.
SOURCES_BY_LAYER = "kv_source_layers"


def _renumber_sources(config: Any, new: Mapping[int, int]) -> None:
    """None of those that go is a source of one that stays: this was asked before."""
    if isinstance(sources := getattr(config, SOURCES_BY_LAYER, None), list):
        setattr(config, SOURCES_BY_LAYER, [new[source] for layer, source in enumerate(sources) if layer in new])


def _renumber_slots(config: Any, blocks: nn.ModuleList, kept: list[int], before: int) -> None:
    """What others borrow from or look up by layer; and how many slots there are where a block has several (LongCat)."""
    new = {old: position for position, old in enumerate(kept)}
    for module in set(blocks.modules()):
        for name in SOURCES:
            if type(source := vars(module).get(name)) is int and source in new:
                setattr(module, name, new[source])
        for name, table in vars(module).items():
            known = type(table) is dict and "layer" in name and table and all(type(key) is int for key in table)
            if known and set(table) <= set(range(before)):
                setattr(module, name, {new[old]: value for old, value in table.items() if old in new})
    slots = max((len({module.layer_idx for module in _mixers(block)}) for block in blocks), default=1)
    if slots > 1 and getattr(config, "num_hidden_layers", None) == before * slots:
        config.num_hidden_layers = len(kept) * slots


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
