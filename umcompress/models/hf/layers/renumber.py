"""After blocks or attentions have gone: what a model of transformers keeps count of by layer number.

A cache has one slot a layer, and masks are sized by the first slot of their type (sliding, full). So the first slot
of each type has to belong to an attention that is still there, or lengths are read from a slot that nothing fills.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from umcompress.models.hf.layers.fields_by_code import LookedUp, looked_up
from umcompress.models.hf.layers.known_fields import (
    _BOUNDARIES,
    _BY_LAYER,
    _EDGES,
    _FROM_THE_TOP,
    _KINDS,
    _LAST,
    _NUMBERS,
    COUNTS,
    _mixers,
    count_field,
    owner_of,
    say,
)
from umcompress.models.hf.layers.lent_layers import _renumber_slots, _renumber_sources
from umcompress.models.hf.layers.read_layers import _feed_again, _tap_again, _tap_own_again
from umcompress.models.hf.names import MAIN_STACK


def update_block_counts(
    model: PreTrainedModel, stacks: Mapping[str, str], removed: Mapping[str, Sequence[int]]
) -> None:
    """`removed`: positions that blocks had before they were taken out of their stacks, which is done."""
    for stack, path in stacks.items():
        blocks = model.get_submodule(path)
        assert isinstance(blocks, nn.ModuleList)
        owner, config = owner_of(model, path)
        if gone := set(removed.get(stack, ())):
            before = len(blocks) + len(gone)
            kept = [i for i in range(before) if i not in gone]
            _renumber(owner, config, path, kept, before, looked_up(owner, blocks))
            _renumber_slots(config, blocks, kept, before)
            if stack == MAIN_STACK:
                _feed_again(model.config, kept, before)
            else:
                _tap_own_again(model, path, config, kept, before)
                if config is not getattr(model.config, "audio_config", None):
                    _tap_again(model.config, kept, before)
        _give_slots(config, blocks)
        _restate_widths(blocks)


def _renumber(
    owner: nn.Module, config: Any, path: str, kept: list[int], before: int, by_code: LookedUp
) -> None:
    new = {old: position for position, old in enumerate(kept)}
    _renumber_sources(config, new)
    kinds = {name: value for name in _KINDS if isinstance(value := getattr(config, name, None), list)}
    for holder in (config, owner):
        for name, value in list(vars(holder).items()):
            if not isinstance(value, list | tuple):
                continue
            if _NUMBERS.search(name) or (name in by_code.numbers and _are_layers(value, before)):
                setattr(holder, name, type(value)(new[old] for old in value if old in new))
            elif (_BY_LAYER.search(name) or name in by_code.entries) and len(value) == before:
                setattr(holder, name, type(value)(value[old] for old in kept))
    for name in _BOUNDARIES:
        if isinstance(edge := getattr(config, name, None), int):
            setattr(config, name, sum(old < edge for old in kept))
    for name in _FROM_THE_TOP:
        if isinstance(last := getattr(config, name, None), int):
            setattr(config, name, sum(old >= before - last for old in kept))
    if (count := count_field(config, path, before)) is not None:
        setattr(config, count, len(kept))
    _renumber_overrides(config, new)
    for name, value in kinds.items():
        say(config, name, [value[old] for old in kept] if len(value) == before else value)
    for name in _EDGES:
        if type(edge := vars(owner).get(name)) is int:
            setattr(owner, name, sum(old < edge for old in kept))
    for name in (*COUNTS, "layers"):
        if type(vars(owner).get(name)) is int and vars(owner)[name] == before:
            setattr(owner, name, len(kept))


def _are_layers(value: list[Any] | tuple[Any, ...], before: int) -> bool:
    return all(type(one) is int and 0 <= one < before for one in value)


def _renumber_overrides(config: Any, new: Mapping[int, int]) -> None:
    """What a configuration says of single layers, for those that are left."""
    spec = vars(config).get("_heterogeneity_spec")
    if spec is not None:
        left = {new[old]: dict(own) for old, own in spec.per_layer_overrides.items() if old in new}
        config.per_layer_config = left or None


def _give_slots(config: Any, blocks: nn.ModuleList) -> None:
    """Number the attentions that are left; retype the layers that have none."""
    mixers = [_mixers(block) for block in blocks]
    if not any(mixers) or any(len({module.layer_idx for module in found}) > 1 for found in mixers):
        return
    types = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    known = isinstance(types, list) and len(types) == len(blocks)
    kinds: list[str] = list(types) if known and types is not None else [""] * len(blocks)
    nearest = next(kind for kind, found in zip(reversed(kinds), reversed(mixers), strict=True) if found)
    for index in reversed(range(len(blocks))):
        nearest = kinds[index] = kinds[index] if mixers[index] else nearest
    for index, found in enumerate(mixers):
        first = kinds.index(kinds[index])
        # Between the first slot of a type and its first owner there are only layers without an attention.
        owner = next(i for i, kind in enumerate(kinds) if kind == kinds[index] and mixers[i]) if found else index
        for module in found:
            module.layer_idx = first if index == owner else index
    if known:
        for name in _KINDS:
            if getattr(config, name, None) == types:
                say(config, name, kinds)


def _restate_widths(blocks: nn.ModuleList) -> None:
    """Feed-forwards that keep their width as a number besides."""
    for module in blocks.modules():
        found = (getattr(module, name, None) for name in _LAST)
        last = next((linear for linear in found if isinstance(linear, nn.Linear)), None)
        for name in ("intermediate_size", "ffn_dim", "hidden_features"):
            if last is not None and isinstance(getattr(module, name, None), int):
                setattr(module, name, last.in_features)
