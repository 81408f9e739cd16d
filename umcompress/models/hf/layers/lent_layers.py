"""Layers that lend something to layers above: keys and values, a choice of tokens, position biases."""

from __future__ import annotations

from typing import Any

from umcompress.models.hf.layers.config_fields import cached_attentions
from umcompress.models.hf.layers.known_fields import (
    CHOOSES_NOTHING,
    CHOOSING_KINDS,
    LENDING_LAYER,
    LENDING_LAYERS,
    MAKES_BIASES,
)
from umcompress.models.hf.layers.removal import Removal


def check(removal: Removal) -> None:
    """PlanError where a block goes that one which stays borrows from."""
    lent = _lent(removal)
    if lost := sorted(removal.gone & set(lent)):
        raise removal.refused(lost, f"blocks above use their {lent[lost[0]]}")
    made = [any(vars(part).get(MAKES_BIASES) is True for part in block.modules()) for block in removal.blocks]
    lost = [index for index in sorted(removal.gone) if made[index]]
    if lost and not all(made[index] for index in removal.kept):
        raise removal.refused(lost, "the blocks above use the biases of positions that it makes")


def _lent(removal: Removal) -> dict[int, str]:
    """Position of a block that one which stays borrows from -> what it lends."""
    lent = {
        vars(module)[name]: "keys and values"
        for index, block in enumerate(removal.blocks) if index not in removal.gone
        for module in block.modules() for name in LENDING_LAYER if type(vars(module).get(name)) is int
    }  # fmt: skip
    for index, source in enumerate(getattr(removal.config, LENDING_LAYERS, None) or ()):
        if index not in removal.gone:
            lent[source] = "keys and values"
    chosen = 0
    for index, kind in enumerate(getattr(removal.config, CHOOSING_KINDS, None) or ()):
        if kind != CHOOSES_NOTHING:
            chosen = index
        elif index not in removal.gone:
            lent[chosen] = "choice of tokens"
    return lent


def renumber(removal: Removal) -> None:
    """Let the layers that are left borrow from the same ones by their new numbers."""
    config, new = removal.config, removal.new
    # None of those that are gone lends to one that stays: `check` refuses that.
    if isinstance(sources := getattr(config, LENDING_LAYERS, None), list):
        setattr(config, LENDING_LAYERS, [new[source] for layer, source in enumerate(sources) if layer in new])
    for module in set(removal.blocks.modules()):
        for name in LENDING_LAYER:
            if type(source := vars(module).get(name)) is int and source in new:
                setattr(module, name, new[source])
        _renumber_tables(module, removal)
    slots = max((len({module.layer_idx for module in cached_attentions(block)}) for block in removal.blocks), default=1)
    # Blocks with several attentions count each of them as a layer of the cache (LongCat).
    if slots > 1 and getattr(config, "num_hidden_layers", None) == removal.before * slots:
        config.num_hidden_layers = len(removal.kept) * slots


def _renumber_tables(module: Any, removal: Removal) -> None:
    """Dictionaries of a module by layer number, whose names say so."""
    for name, table in vars(module).items():
        by_number = type(table) is dict and "layer" in name and table and all(type(key) is int for key in table)
        if by_number and set(table) <= set(range(removal.before)):
            setattr(module, name, {removal.new[old]: value for old, value in table.items() if old in removal.new})
