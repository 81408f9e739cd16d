"""ALiBi (arXiv 2108.12409) after heads were cut: each head has a slope that follows from its number.

The model makes one table of position biases for all blocks, for as many heads as it was made with, and goes on doing so
after a cut. The forward of each attention is wrapped so that it takes the rows of the heads that it has left.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Forward = Callable[..., Any]


def with_own_slopes(name: str, forward: Forward) -> Forward | None:
    """The forward of a class of transformers, wrapped to take the biases of its kept heads; None without ALiBi."""
    wrap = _FORWARD_WRAPPERS.get(name)
    return None if wrap is None else functools.wraps(forward)(wrap(forward))


def record_kept_heads(module: Any, before: int, heads: Sequence[int]) -> None:
    """Note which heads are left, as numbers among the `before` ones that there were; cuts add up."""
    if type(module).__name__ not in _FORWARD_WRAPPERS:
        return
    made, own = getattr(module, "umcompress_slopes", (before, tuple(range(before))))
    module.umcompress_slopes = (made, tuple(own[head] for head in heads))


def _select_kept_heads(module: Any, biases: Tensor, axis: int) -> Tensor:
    """The kept heads of `biases`, whose `axis` has one entry for each head that the model was made with."""
    made, heads = getattr(module, "umcompress_slopes", (0, ()))
    if biases.shape[axis] != made:
        return biases
    return biases.index_select(axis, torch.tensor(heads, device=biases.device))


def _bloom(theirs: Forward) -> Forward:
    """alibi: (batch * heads, 1, tokens)."""

    def forward(self: Any, hidden_states: Tensor, residual: Tensor, alibi: Tensor, *rest: Any, **more: Any) -> Any:
        batch = hidden_states.shape[0]
        own = _select_kept_heads(self, alibi.reshape(batch, -1, *alibi.shape[1:]), 1).flatten(0, 1)
        return theirs(self, hidden_states, residual, own, *rest, **more)

    return forward


def _falcon(theirs: Forward) -> Forward:
    """alibi: None, or (batch, heads, 1, tokens), and in the mask (batch, heads, tokens, tokens) already."""

    def forward(
        self: Any, hidden_states: Tensor, alibi: Tensor | None, attention_mask: Tensor, *rest: Any, **more: Any
    ) -> Any:
        if alibi is not None:
            alibi, attention_mask = _select_kept_heads(self, alibi, 1), _select_kept_heads(self, attention_mask, 1)
        return theirs(self, hidden_states, alibi, attention_mask, *rest, **more)

    return forward


def _mpt(theirs: Forward) -> Forward:
    """position_bias: (heads, 1, tokens)."""

    def forward(self: Any, hidden_states: Tensor, position_bias: Tensor, *rest: Any, **more: Any) -> Any:
        return theirs(self, hidden_states, _select_kept_heads(self, position_bias, 0), *rest, **more)

    return forward


_FORWARD_WRAPPERS = {"BloomAttention": _bloom, "FalconAttention": _falcon, "MptAttention": _mpt}
