"""Rows of tokens that a language model reads further and further, each with its own past.

B rows, k new tokens, T tokens so far, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from umcompress.models.hf.ask.carried_state import carried_state


@dataclass
class _Batch:
    """Rows that share a batch. mask: (b, T), None where nothing is padded."""

    places: list[int]
    mask: Tensor | None
    state: dict[str, Any] = field(default_factory=dict)


class IncrementalForward:
    """`padded`: all rows share one batch, the shorter ones padded on the left. Else rows of one length share one:
    then whatever goes through the model is a token, as statistics want it.
    """

    def __init__(self, language_model: Any, embed: Any, rows: Sequence[Sequence[int]], padded: bool) -> None:
        self.language_model = language_model
        self.device: torch.device = embed.weight.device
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        groups = [order] if padded else [list(same) for _, same in groupby(order, key=lambda p: len(rows[p]))]
        self.batches: list[_Batch] = []
        starts: list[Tensor] = []
        for places in groups:
            ids, mask = left_padded([rows[place] for place in places])
            self.batches.append(_Batch(places, None if mask.all() else mask.to(self.device)))
            starts.append(embed(ids.to(self.device)))
        self.hidden = self._gather([self._step(*pair) for pair in zip(self.batches, starts, strict=True)])

    def add(self, more: Tensor) -> Tensor:
        """Read (B, k, H) more; the last state of each row, (B, H)."""
        self.hidden = self._gather([self._step(batch, more[batch.places]) for batch in self.batches])
        return self.hidden

    def _step(self, batch: _Batch, embedded: Tensor) -> Tensor:
        call: dict[str, Any] = {}
        if batch.mask is not None:
            if batch.state:
                batch.mask = torch.cat([batch.mask, batch.mask.new_ones(embedded.shape[:2])], dim=1)
            call = {"attention_mask": batch.mask, "position_ids": positions(batch.mask)[:, -embedded.shape[1] :]}
        out = self.language_model(inputs_embeds=embedded, use_cache=True, **batch.state, **call)
        batch.state = carried_state(self.language_model, out)
        last: Tensor = out.last_hidden_state[:, -1]
        return last

    def _gather(self, parts: list[Tensor]) -> Tensor:
        places = torch.tensor([place for batch in self.batches for place in batch.places], device=self.device)
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
