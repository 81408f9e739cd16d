"""Norms of the rows or columns of a weight, computed in float64, a few rows at a time.

A float64 copy of a whole weight would cost more time than the sums: at 7B it is hundreds of megabytes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

ROWS = 256


def row_norms(weight: Tensor) -> Tensor:
    """(R, C) -> (R,) float64 on the CPU."""
    return torch.cat([part.double().norm(dim=1) for part in _parts(weight)]).cpu()


def column_norms(weight: Tensor) -> Tensor:
    """(R, C) -> (C,) float64 on the CPU."""
    total = torch.zeros(weight.shape[1], dtype=torch.float64, device=weight.device)
    for part in _parts(weight):
        # A copy may be squared in place, which saves as much time again; float64 weights are no copy.
        total += (part.square() if part.dtype == torch.float64 else part.double().square_()).sum(0)
    return total.sqrt().cpu()


def _parts(weight: Tensor) -> Iterator[Tensor]:
    """Half-precision weights by way of float32, which is exact and far faster."""
    for start in range(0, len(weight), ROWS):
        part = weight[start : start + ROWS].detach()
        yield part.float() if part.dtype.itemsize == 2 else part
