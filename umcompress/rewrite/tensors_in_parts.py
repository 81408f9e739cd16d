"""New tensors a part at a time, for writing what would not fit into memory.

The same bits as `tensors.evaluate`: only what is read of the old ones, and in which order, differs.
"""

from __future__ import annotations

import itertools
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
    found = pick(expression.source, _below(expression, picks), old, blobs)
    if isinstance(expression, Flip):
        return found.t()
    if isinstance(expression, Fold):
        dim, groups = expression.dim, len(picks[0])
        apart = (*found.shape[:dim], groups, len(picks[1 + dim]), *found.shape[dim + 1 :])
        return found.reshape(apart).movedim(dim, 0)
    return found


def _below(expression: Take | Fold | Flip, picks: Picks) -> Picks:
    """What an expression needs of the one below it."""
    if isinstance(expression, Flip):
        return picks[::-1]
    if isinstance(expression, Take):
        return _through(expression.index, expression.dim, picks)
    dim, inner = expression.dim, picks[1:]
    # All groups at once: most of what is read for one, another needs as well.
    each = (_through(expression.groups[number], dim, inner)[dim] for number in picks[0])
    return (*inner[:dim], tuple(itertools.chain(*each)), *inner[dim + 1 :])


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
        return _cost(expression.source, _below(expression, picks), old)
    return old.cost(expression.name, picks) if isinstance(expression, Same) else 0
