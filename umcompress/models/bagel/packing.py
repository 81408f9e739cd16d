"""Rows of several sequences, packed one after another, and their padded view.

Shapes: R rows in all, B sequences, L rows of the longest sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Packing:
    """`counts[b]` rows belong to sequence b; rows are sorted by sequence."""

    def __init__(self, counts: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.counts = tuple(counts)
        self.rows = sum(self.counts)
        self.batch = len(self.counts)
        self.length = max(self.counts, default=0)
        self.uniform = len(set(self.counts)) <= 1
        self.device = torch.device(device)
        self._grid: Tensor | None = None
        self._slots: Tensor | None = None
        if not self.uniform:
            counts_b = torch.tensor(self.counts)
            columns = torch.arange(self.length)
            valid = columns[None] < counts_b[:, None]
            starts = counts_b.cumsum(0) - counts_b
            # A padded place repeats row 0: it is masked as a key and never read as a query.
            grid = torch.where(valid, starts[:, None] + columns[None], 0)
            self._slots = valid.flatten().nonzero()[:, 0].to(device)
            self._grid = grid.to(device)
            self._valid = valid

    @property
    def valid(self) -> Tensor:
        """(B, L) boolean on the CPU: which padded places hold a row."""
        if self.uniform:
            return torch.ones(self.batch, self.length, dtype=torch.bool)
        return self._valid

    def pad(self, rows: Tensor) -> Tensor:
        """(R, ...) -> (B, L, ...)."""
        if self._grid is None:
            return rows.view(self.batch, self.length, *rows.shape[1:])
        return rows[self._grid]

    def unpad(self, grid: Tensor) -> Tensor:
        """(B, L, ...) -> (R, ...)."""
        flat = grid.reshape(self.batch * self.length, *grid.shape[2:])
        return flat if self._slots is None else flat[self._slots]

    def split(self, rows: Tensor) -> list[Tensor]:
        """(R, ...) -> one (counts[b], ...) a sequence."""
        return list(torch.split(rows, list(self.counts)))


def packing_cpu(packing: Packing) -> Packing:
    """The same packing for tensors on the CPU."""
    return packing if packing.device.type == "cpu" else Packing(packing.counts)
