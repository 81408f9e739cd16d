"""New tensors a few rows at a time, for writing what would not fit into memory.

The same bits as `tensors.evaluate`: only the order in which rows are read differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from umcompress.rewrite.tensors import Blob, Blobs, Expression, Same, Take, Zeros, evaluate

# Bytes that one piece of a tensor may take; a few such pieces are in memory at once.
PIECE = 32 << 20


class Rows(Protocol):
    """Old tensors, whole or in part; see `checkpoint.disk.Disk`."""

    def read(self, name: str) -> Tensor: ...

    def rows(self, name: str, low: int, high: int) -> Tensor: ...


def pieces(
    expression: Expression, shape: tuple[int, ...], dtype: torch.dtype, old: Rows, blobs: Blobs = ()
) -> Iterator[Tensor]:
    """The tensor of `expression`, cut along its first axis, each piece cast to `dtype`."""
    if not shape or not _by_rows(expression):
        yield evaluate(expression, old.read, blobs).to(dtype)
        return
    width = dtype.itemsize
    for side in shape[1:]:
        width *= side
    step = max(1, PIECE // max(width, 1))
    for low in range(0, shape[0], step):
        yield rows(expression, low, min(low + step, shape[0]), old, blobs).to(dtype)


def rows(expression: Expression, low: int, high: int, old: Rows, blobs: Blobs = ()) -> Tensor:
    """Entries [low, high) of the first axis of what `expression` stands for."""
    if isinstance(expression, Same):
        return old.rows(expression.name, low, high)
    if isinstance(expression, Zeros):
        return torch.zeros((high - low, *expression.shape[1:]), dtype=expression.dtype)
    if isinstance(expression, Blob):
        return blobs[expression.plan][expression.name][low:high].detach()
    assert isinstance(expression, Take)
    if expression.dim != 0:
        source = rows(expression.source, low, high, old, blobs)
        return _taken(source, expression.dim, expression.index)
    index = torch.tensor(expression.index[low:high])
    first = int(index.min())
    source = rows(expression.source, first, int(index.max()) + 1, old, blobs)
    return source.index_select(0, index - first)


_WHOLE_NUMBERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _taken(source: Tensor, dim: int, index: tuple[int, ...]) -> Tensor:
    """`index_select`; numpy's way is three times as fast along a later axis, and half of what is written needs it."""
    whole = source.contiguous().view(_WHOLE_NUMBERS[source.dtype.itemsize])
    found = whole.numpy().take(np.asarray(index), axis=dim, mode="clip")
    return torch.from_numpy(found).view(source.dtype)


def _by_rows(expression: Expression) -> bool:
    """Whether a few new rows need only a few old ones: what is taken along the first axis is ascending."""
    while isinstance(expression, Take):
        if expression.dim == 0 and any(a >= b for a, b in zip(expression.index, expression.index[1:], strict=False)):
            return False
        expression = expression.source
    return isinstance(expression, Same | Zeros | Blob)
