"""Attentions whose heads differ by more than their weights: each has a slope of its own, which follows from its number.

The model makes one table of biases for all its blocks, for as many heads as it was made with (ALiBi, arXiv 2108.12409).
It goes on doing so when heads have gone; an attention takes the biases of the heads that it has left.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Forward = Callable[..., Any]


def choosing(name: str, forward: Forward) -> Forward | None:
    """The forward of a class of transformers with the biases of its own heads; None where heads have none."""
    wrap = _WRAPS.get(name)
    return None if wrap is None else functools.wraps(forward)(wrap(forward))


def keep(module: Any, before: int, heads: Sequence[int]) -> None:
    """Note which heads are left, as numbers among the `before` ones that there were; cuts add up."""
    if type(module).__name__ not in _WRAPS:
        return
    made, own = getattr(module, "umcompress_slopes", (before, tuple(range(before))))
    module.umcompress_slopes = (made, tuple(own[head] for head in heads))


def _own(module: Any, biases: Tensor, axis: int) -> Tensor:
    """Of an axis with something for each head of the model, what is for the heads that are left."""
    made, heads = getattr(module, "umcompress_slopes", (0, ()))
    if biases.shape[axis] != made:
        return biases
    return biases.index_select(axis, torch.tensor(heads, device=biases.device))


def _bloom(theirs: Forward) -> Forward:
    """alibi: (batch * heads, 1, tokens)."""

    def forward(self: Any, hidden_states: Tensor, residual: Tensor, alibi: Tensor, *rest: Any, **more: Any) -> Any:
        batch = hidden_states.shape[0]
        own = _own(self, alibi.reshape(batch, -1, *alibi.shape[1:]), 1).flatten(0, 1)
        return theirs(self, hidden_states, residual, own, *rest, **more)

    return forward


def _falcon(theirs: Forward) -> Forward:
    """alibi: None, or (batch, heads, 1, tokens), and in the mask (batch, heads, tokens, tokens) already."""

    def forward(
        self: Any, hidden_states: Tensor, alibi: Tensor | None, attention_mask: Tensor, *rest: Any, **more: Any
    ) -> Any:
        if alibi is not None:
            alibi, attention_mask = _own(self, alibi, 1), _own(self, attention_mask, 1)
        return theirs(self, hidden_states, alibi, attention_mask, *rest, **more)

    return forward


def _mpt(theirs: Forward) -> Forward:
    """position_bias: (heads, 1, tokens)."""

    def forward(self: Any, hidden_states: Tensor, position_bias: Tensor, *rest: Any, **more: Any) -> Any:
        return theirs(self, hidden_states, _own(self, position_bias, 0), *rest, **more)

    return forward


_WRAPS = {"BloomAttention": _bloom, "FalconAttention": _falcon, "MptAttention": _mpt}
