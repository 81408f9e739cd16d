"""Layers whose output is read by something other than the next layer.

A connector may read a vision tower after another block than its last; what a vision block sees may be added to a
language block. Such a place is a number in a configuration, and goes on meaning the same block.
"""

from __future__ import annotations

from typing import Any

from umcompress.models.hf.layers.config_fields import is_second_stack
from umcompress.models.hf.layers.known_fields import (
    ADDED_IN_ORDER,
    LANGUAGE_READ,
    LANGUAGE_TARGETS,
    OTHER_TOWERS,
    OWN_READ,
    OWN_READ_ATTRIBUTE,
    READ_BESIDE,
    READ_PAIRS,
    VISION_READ,
    ReadField,
)
from umcompress.models.hf.layers.removal import Removal
from umcompress.models.hf.names import MAIN_STACK


def check(removal: Removal) -> None:
    """PlanError where a block goes that vision and language share one to one."""
    whole, config = removal.model.config, removal.config
    vision = getattr(whole, "vision_config", None)
    added = getattr(vision, ADDED_IN_ORDER, None) or ()
    bound = set(added) if hasattr(removal.owner, ADDED_IN_ORDER) else set()
    bound |= set(_read_beside(removal))
    if removal.stack == MAIN_STACK:
        bound = set(range(len(added))) | _language_targets(whole)
    elif config is vision:
        bound |= {place % removal.before for field in VISION_READ if field.stays for place in _places(whole, field)}
    if lost := sorted(removal.gone & bound):
        listed = ", ".join(map(str, sorted(bound)))
        raise removal.refused(lost, f"what the vision tower sees goes through blocks {listed} one to one")


def _read_beside(removal: Removal) -> list[int]:
    """Blocks of a tower whose outputs are read beside the last one's."""
    return [] if is_second_stack(removal.path) else list(getattr(removal.config, READ_BESIDE, None) or ())


def _language_targets(config: Any) -> set[int]:
    """Language blocks that a configuration says features of pictures are added to."""
    pairs = getattr(config, READ_PAIRS, None) or ()
    return {layer for _, layer in pairs} | set(getattr(config, LANGUAGE_TARGETS, None) or ())


def _places(config: Any, field: ReadField) -> list[int]:
    """The numbers in a field that holds a list of them."""
    found = getattr(_holder(config, field), field.name, None)
    return list(found) if isinstance(found, list | tuple) else []


def _holder(config: Any, field: ReadField) -> Any:
    return getattr(config, field.part, None) if field.part else config


def renumber(removal: Removal) -> None:
    """Let every reader read after the same block as before."""
    whole, kept = removal.model.config, removal.kept
    if removal.stack == MAIN_STACK:
        for field in LANGUAGE_READ:
            _renumber_field(whole, field, removal)
        # `check` lets none of these blocks go.
        if pairs := getattr(whole, READ_PAIRS, None):
            setattr(whole, READ_PAIRS, [[state, kept.index(layer)] for state, layer in pairs])
        if targets := getattr(whole, LANGUAGE_TARGETS, None):
            setattr(whole, LANGUAGE_TARGETS, [kept.index(layer) for layer in targets])
        return
    _renumber_own(removal)
    if all(removal.config is not getattr(whole, tower, None) for tower in OTHER_TOWERS):
        for field in VISION_READ:
            _renumber_field(whole, field, removal)
        if pairs := getattr(whole, READ_PAIRS, None):
            setattr(whole, READ_PAIRS, [[_new_state(state, removal), layer] for state, layer in pairs])


def _renumber_own(removal: Removal) -> None:
    """What a tower's own configuration says, and the copies of it in the modules above."""
    config, above = removal.config, removal.modules_above
    if type(before := getattr(config, OWN_READ.name, None)) is int:
        _renumber_field(config, OWN_READ, removal)
        for module in above:
            if vars(module).get(OWN_READ_ATTRIBUTE) == before:
                setattr(module, OWN_READ_ATTRIBUTE, getattr(config, OWN_READ.name))
    if beside := _read_beside(removal):
        for holder in (config, *(module for module in above if READ_BESIDE in vars(module))):
            setattr(holder, READ_BESIDE, [removal.kept.index(block) for block in beside])


def _renumber_field(config: Any, field: ReadField, removal: Removal) -> None:
    holder = _holder(config, field)
    value = getattr(holder, field.name, None)
    # Blocks count from 0, the state that comes out of block 0 is state 1; from the end both count alike.
    offset = int(field.counts == "blocks")

    def after(place: int) -> int:
        return _new_state(place + offset, removal) - offset if place >= 0 else _new_state(place, removal)

    if type(value) is int:
        setattr(holder, field.name, after(value))
    elif isinstance(value, list | tuple):
        setattr(holder, field.name, [after(place) for place in value])


def _new_state(state: int, removal: Removal) -> int:
    """The new number of a hidden state: 0 goes into the first block, 1 comes out of it, -1 comes out of the last."""
    blocks_below = state if state >= 0 else removal.before + 1 + state
    left = sum(block < blocks_below for block in removal.kept)
    return left if state >= 0 else left - len(removal.kept) - 1
