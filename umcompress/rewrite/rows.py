"""New tensors a part at a time, for writing what would not fit into memory.

The same bits as `tensors.evaluate`: only what is read of the old ones, and in which order, differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from umcompress.checkpoint.parts import Pick, Picks, Region, Stored, sides, taken
from umcompress.rewrite.tensors import Blob, Blobs, Expression, Flip, Fold, Same, Take, Zeros


class Old(Protocol):
    """Old tensors, whole or in part; see `checkpoint.disk.Disk`."""

    def dtype(self, name: str) -> torch.dtype: ...

    def pick(self, name: str, picks: Picks) -> Tensor: ...

    def cost(self, name: str, picks: Picks) -> int: ...

    def stored(self, name: str, region: Region) -> Stored | None: ...


@dataclass(frozen=True, eq=False)
class NewTensor:
    """What an expression stands for, cast to `dtype`; made when a part of it is asked for."""

    expression: Expression
    shape: tuple[int, ...]
    dtype: torch.dtype
    old: Old
    blobs: Blobs = ()

    def part(self, region: Region) -> Tensor:
        return pick(self.expression, region, self.old, self.blobs).to(self.dtype)

    def cost(self, region: Region) -> int:
        return _cost(self.expression, region, self.old)

    def stored(self, region: Region) -> Stored | None:
        expression = self.expression
        if not isinstance(expression, Same) or self.old.dtype(expression.name) != self.dtype:
            return None
        return self.old.stored(expression.name, region)


def pick(expression: Expression, picks: Picks, old: Old, blobs: Blobs = ()) -> Tensor:
    """Any entries of each axis of what `expression` stands for."""
    if isinstance(expression, Same):
        return old.pick(expression.name, picks)
    if isinstance(expression, Zeros):
        return torch.zeros(sides(picks), dtype=expression.dtype)
    if isinstance(expression, Blob):
        found = blobs[expression.plan][expression.name].detach()
        for axis, picked in enumerate(picks):
            if len(picked) != found.shape[axis] or isinstance(picked, tuple):
                found = taken(found, axis, picked)
        return found
    parts = [pick(source, inner, old, blobs) for source, inner in _needs(expression, picks)]
    if isinstance(expression, Fold):
        return torch.stack(parts) if parts else torch.empty(sides(picks))
    return parts[0].t() if isinstance(expression, Flip) else parts[0]


def _needs(expression: Take | Fold | Flip, picks: Picks) -> Iterator[tuple[Expression, Picks]]:
    """What an expression needs of the one below it; once for each group of a Fold."""
    if isinstance(expression, Flip):
        yield expression.source, picks[::-1]
    elif isinstance(expression, Take):
        yield expression.source, _through(expression.index, expression.dim, picks)
    else:
        for number in picks[0]:
            yield expression.source, _through(expression.groups[number], expression.dim, picks[1:])


def _through(index: tuple[int, ...], dim: int, picks: Picks) -> Picks:
    """Picks among the entries `index` as picks among all."""
    picked = picks[dim]
    if isinstance(picked, range):
        chosen: Pick = index[picked.start : picked.stop]
    else:
        chosen = tuple(index[position] for position in picked)
    return (*picks[:dim], chosen, *picks[dim + 1 :])


def _cost(expression: Expression, picks: Picks, old: Old) -> int:
    if isinstance(expression, Take | Fold | Flip):
        return sum(_cost(source, inner, old) for source, inner in _needs(expression, picks))
    return old.cost(expression.name, picks) if isinstance(expression, Same) else 0
