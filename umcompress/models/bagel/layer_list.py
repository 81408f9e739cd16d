"""What a layer of a BAGEL has in one stream, as the list that folders for our plug-ins hold, an entry a layer."""

from __future__ import annotations

from typing import Any

from torch import nn

from umcompress.models.bagel.attention import BagelAttention
from umcompress.models.bagel.served_experts import described
from umcompress.rewrite.nn.experts import SparseFeedForward

MODULES = {"understanding": "mlp", "generation": "mlp_moe_gen"}


def layer_entry(block: nn.Module, stream: str) -> dict[str, Any] | str:
    """attention: whether it is there. channels: of the dense feed-forward, 0 without. experts: of one that is split.

    In words, what no list can say.
    """
    attention, feed_forward = getattr(block, "self_attn", None), getattr(block, MODULES[stream], None)
    there = isinstance(attention, BagelAttention) and attention.stream(stream) is not None
    entry: dict[str, Any] = {"attention": there, "channels": 0}
    if isinstance(feed_forward, SparseFeedForward):
        experts = described(feed_forward)
        return experts if isinstance(experts, str) else {**entry, "experts": experts}
    if getattr(getattr(feed_forward, "down_proj", None), "bias", None) is not None:
        return "feed-forwards have a bias, which other programs have no place for: use another repair than bias"
    gate = getattr(feed_forward, "gate_proj", None)
    return {**entry, "channels": gate.weight.shape[0]} if isinstance(gate, nn.Linear) else entry
