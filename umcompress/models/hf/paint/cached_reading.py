"""Rows of tokens that a language model reads further and further, each with its own past.

B rows, k new tokens, T tokens so far, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor


@dataclass
class _Lane:
    """Rows that share a batch. mask: (b, T), None where nothing is padded."""

    places: list[int]
    mask: Tensor | None
    cache: Any = None


class Reading:
    """`padded`: all rows share one batch, the shorter ones padded on the left. Else rows of one length share one:
    then whatever goes through the model is a token, as statistics want it.
    """

    def __init__(self, body: Any, embed: Any, rows: Sequence[Sequence[int]], padded: bool) -> None:
        self.body = body
        self.device: torch.device = embed.weight.device
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        groups = [order] if padded else [list(same) for _, same in groupby(order, key=lambda p: len(rows[p]))]
        self.lanes: list[_Lane] = []
        starts: list[Tensor] = []
        for places in groups:
            ids, mask = left_padded([rows[place] for place in places])
            self.lanes.append(_Lane(places, None if mask.all() else mask.to(self.device)))
            starts.append(embed(ids.to(self.device)))
        self.hidden = self._gather([self._step(*pair) for pair in zip(self.lanes, starts, strict=True)])

    def add(self, more: Tensor) -> Tensor:
        """Read (B, k, H) more; the last state of each row, (B, H)."""
        self.hidden = self._gather([self._step(lane, more[lane.places]) for lane in self.lanes])
        return self.hidden

    def _step(self, lane: _Lane, embedded: Tensor) -> Tensor:
        call: dict[str, Any] = {}
        if lane.mask is not None:
            if lane.cache is not None:
                lane.mask = torch.cat([lane.mask, lane.mask.new_ones(embedded.shape[:2])], dim=1)
            call = {"attention_mask": lane.mask, "position_ids": positions(lane.mask)[:, -embedded.shape[1] :]}
        out = self.body(inputs_embeds=embedded, past_key_values=lane.cache, use_cache=True, **call)
        lane.cache = out.past_key_values
        last: Tensor = out.last_hidden_state[:, -1]
        return last

    def _gather(self, parts: list[Tensor]) -> Tensor:
        places = torch.tensor([place for lane in self.lanes for place in lane.places], device=self.device)
        return torch.cat(parts)[places.argsort()]


def left_padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(B, T) ids and mask."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
    return ids, torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])


def positions(mask: Tensor) -> Tensor:
    """Of each token among those that are none of the padding."""
    found: Tensor = mask.cumsum(1).sub(1).clamp(min=0)
    return found
