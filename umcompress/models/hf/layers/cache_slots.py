"""Number the cache slots of the attentions that are left, after blocks or attentions have gone.

A cache has one slot a layer, and masks are sized by the first slot of their type (sliding, full). So the first slot
of each type has to belong to an attention that is still there, or lengths are read from a slot that nothing fills.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from umcompress.models.hf.layers.config_fields import cached_attentions, set_field
from umcompress.models.hf.layers.known_fields import LAST_LINEARS, LAYER_KINDS, MODULE_WIDTHS


def number_slots(config: Any, blocks: nn.ModuleList) -> None:
    """Give each attention its slot, and each layer without one the kind of a layer above that has one."""
    attentions = [cached_attentions(block) for block in blocks]
    if not any(attentions) or any(len({module.layer_idx for module in found}) > 1 for found in attentions):
        return
    listed = next((found for name in LAYER_KINDS if (found := getattr(config, name, None))), None)
    known = isinstance(listed, list) and len(listed) == len(blocks)
    kinds: list[str] = list(listed) if known and listed is not None else [""] * len(blocks)
    nearest = next(kind for kind, found in zip(reversed(kinds), reversed(attentions), strict=True) if found)
    for index in reversed(range(len(blocks))):
        nearest = kinds[index] = kinds[index] if attentions[index] else nearest
    for index, found in enumerate(attentions):
        first = kinds.index(kinds[index])
        # Between the first slot of a kind and its first owner there are only layers without an attention: that owner
        # takes the first slot, which nothing else fills.
        owner = next(i for i, kind in enumerate(kinds) if kind == kinds[index] and attentions[i]) if found else index
        for module in found:
            module.layer_idx = first if index == owner else index
    if known:
        for name in LAYER_KINDS:
            if getattr(config, name, None) == listed:
                set_field(config, name, kinds)


def repeat_widths(blocks: nn.ModuleList) -> None:
    """Set the attributes in which feed-forwards repeat their width."""
    for module in blocks.modules():
        found = (getattr(module, name, None) for name in LAST_LINEARS)
        last = next((linear for linear in found if isinstance(linear, nn.Linear)), None)
        for name in MODULE_WIDTHS:
            if last is not None and isinstance(getattr(module, name, None), int):
                setattr(module, name, last.in_features)
