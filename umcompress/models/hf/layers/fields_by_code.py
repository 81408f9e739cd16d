"""What a model's own code looks up by the number of a layer.

Names of fields tell most (`known_fields`). But a field may be called anything, and it is the code that reads
it: in `config.layer_rope_theta[i]` a list has an entry for each layer, `layer_idx in
config.rope_scaling_layers` asks a list of layer numbers.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn

_NUMBER = r"(?:self\.)?(?:layer_idx|layer_id|layer_index|layer_num|layer_number|idx|i)"
_ENTRY = re.compile(rf"\b(?:config|self)\.(\w+)\[{_NUMBER}\]")
_AMONG = re.compile(rf"\b{_NUMBER} (?:not )?in (?:self\.)?(?:config\.)?(\w+)")


@dataclass(frozen=True)
class LookedUp:
    """Names of fields. entries: lists with an entry a layer; numbers: lists of layer numbers."""

    entries: frozenset[str]
    numbers: frozenset[str]


def looked_up(owner: nn.Module, blocks: nn.ModuleList) -> LookedUp:
    """By the module that runs the blocks, and by what is in them."""
    kinds: set[Any] = {type(owner), *(type(module) for module in blocks.modules())}
    found = [_of_class(kind) for kind in kinds]
    entries = frozenset(name for one in found for name in one.entries)
    return LookedUp(entries, frozenset(name for one in found for name in one.numbers))


@cache
def _of_class(cls: Any) -> LookedUp:
    """Nothing where the source is not known."""
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):
        source = ""
    return LookedUp(frozenset(_ENTRY.findall(source)), frozenset(_AMONG.findall(source)))
