"""A model keeps nothing from one text to the next.

Rotary embeddings that are stretched to the longest text so far (dynamic NTK) stay stretched, and Qwen's models add how
far pictures moved the positions of an earlier batch: a score would depend on what ran before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_ORIGINAL = "original_inv_freq"
# These follow the longest text of a batch, so that a shorter one beside it is read in another way than alone.
_BY_LENGTH = ("dynamic", "longrope")


@contextmanager
def at_rest(model: torch.nn.Module) -> Iterator[None]:
    """Inside, and after it, the model is as if nothing had run."""
    forget_earlier_calls(model)
    try:
        yield
    finally:
        forget_earlier_calls(model)


def forget_earlier_calls(model: torch.nn.Module) -> None:
    """Let go of what earlier calls left behind."""
    for part in model.modules():
        known: Any = part
        if hasattr(known, "rope_deltas"):
            known.rope_deltas = None
        for name, first in list(part.named_buffers(recurse=False)):
            if name.endswith(_ORIGINAL):
                _settle_frequencies(known, name.removesuffix(_ORIGINAL), first)


def _settle_frequencies(part: Any, prefix: str, first: torch.Tensor) -> None:
    """prefix: of a kind of layer, where a model has several."""
    now = getattr(part, f"{prefix}inv_freq", None)
    if isinstance(now, torch.Tensor) and not now.is_meta and not torch.equal(now, first.to(now.device)):
        setattr(part, f"{prefix}inv_freq", first.to(now.device).clone())
    longest = f"{prefix}max_seq_len_cached"
    if hasattr(part, longest) and hasattr(part, "original_max_seq_len"):
        setattr(part, longest, part.original_max_seq_len)


def reads_by_length(model: torch.nn.Module) -> bool:
    """Whether how a text is read depends on the longest text beside it."""
    kinds = (getattr(part, "rope_type", None) for part in model.modules())
    return any(kind in _BY_LENGTH for each in kinds for kind in (each.values() if isinstance(each, dict) else (each,)))
