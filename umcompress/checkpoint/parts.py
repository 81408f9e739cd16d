"""Tensors that can be read in part, and cutting them into pieces along their first axis.

A region is one range an axis, without steps; picks are a range or a list of positions an axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

Region = tuple[range, ...]
Pick = range | tuple[int, ...]
Picks = tuple[Pick, ...]

# Bytes that one piece of a tensor may take; a few such pieces are in memory at once.
PIECE = 32 << 20
# Pieces are made only where all of them read little more than the whole does.
_MORE = 1.5


class FileRange(NamedTuple):
    """A range of bytes in a file."""

    file: Path
    offset: int
    bytes: int


class PartialTensor(Protocol):
    """A tensor that may be too large to be in memory as a whole."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def part(self, region: Region) -> Tensor:
        """The elements of a region."""

    def cost(self, region: Region) -> int:
        """Bytes that are read from files for a region."""

    def stored(self, region: Region) -> FileRange | None:
        """Where just these elements lie in a file, one after the other, in this dtype."""


def whole(shape: Sequence[int]) -> Region:
    return tuple(range(side) for side in shape)


def sides(picks: Sequence[Pick]) -> tuple[int, ...]:
    return tuple(len(pick) for pick in picks)


def pieces(tensor: PartialTensor) -> Iterator[Tensor]:
    """The tensor in pieces along its first axis; in one piece where each would require reading everything."""
    every = whole(tensor.shape)
    cuts = _cuts(every, tensor.dtype)
    if len(cuts) > 1 and tensor.cost(cuts[0]) * len(cuts) > _MORE * tensor.cost(every):
        cuts = [every]
    for region in cuts:
        yield tensor.part(region)


def joined(parts: Iterator[Tensor]) -> Tensor:
    """Pieces as one tensor again."""
    found = list(parts)
    return found[0] if len(found) == 1 else torch.cat(found)


def _cuts(every: Region, dtype: torch.dtype) -> list[Region]:
    if not every or not prod(sides(every)):
        return [every]
    step = max(1, PIECE // (dtype.itemsize * prod(sides(every[1:]))))
    return [(every[0][low : low + step], *every[1:]) for low in range(0, len(every[0]), step)]


def cut_out(tensor: Tensor, region: Region) -> Tensor:
    """A view of these elements."""
    for axis, span in enumerate(region):
        if len(span) != tensor.shape[axis]:
            tensor = tensor.narrow(axis, span.start, len(span))
    return tensor


def extent(pick: Pick) -> range:
    """The range from the first to the last position."""
    if isinstance(pick, range):
        return pick
    return range(min(pick), max(pick) + 1) if pick else range(0)


_WHOLE_NUMBERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def take_along(source: Tensor, axis: int, index: Sequence[int]) -> Tensor:
    """`index_select`; numpy's `take` is three times as fast along axes other than the first."""
    if axis == 0:
        return source.index_select(0, torch.tensor(index, dtype=torch.long))
    numbers = source.contiguous().view(_WHOLE_NUMBERS[source.dtype.itemsize])
    found = numbers.numpy().take(np.asarray(index, dtype=np.int64), axis=axis, mode="clip")
    return torch.from_numpy(found).view(source.dtype)
