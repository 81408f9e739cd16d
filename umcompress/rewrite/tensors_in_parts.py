"""Evaluate expressions of `tensors` in parts, for tensors that do not fit into memory.

The bits are those of `tensors.evaluate`: only what is read of the old tensors, and in which order, differs.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from umcompress.checkpoint.parts import FileRange, Pick, Picks, Region, sides, take_along
from umcompress.rewrite.tensors import Blobs, Expression, StackGroups, StoredValue, Take, Transpose, Unchanged, Zeros


class OldTensors(Protocol):
    """Old tensors, whole or in part; see `checkpoint.disk.DiskTensors`."""

    def dtype(self, name: str) -> torch.dtype: ...

    def pick(self, name: str, picks: Picks) -> Tensor: ...

    def cost(self, name: str, picks: Picks) -> int: ...

    def stored(self, name: str, region: Region) -> FileRange | None: ...


@dataclass(frozen=True, eq=False)
class NewTensor:
    """The value of an expression, cast to `dtype`; parts are computed when they are asked for."""

    expression: Expression
    shape: tuple[int, ...]
    dtype: torch.dtype
    old: OldTensors
    blobs: Blobs = ()

    def part(self, region: Region) -> Tensor:
        return pick(self.expression, region, self.old, self.blobs).to(self.dtype)

    def cost(self, region: Region) -> int:
        return _cost(self.expression, region, self.old)

    def stored(self, region: Region) -> FileRange | None:
        expression = self.expression
        if not isinstance(expression, Unchanged) or self.old.dtype(expression.name) != self.dtype:
            return None
        return self.old.stored(expression.name, region)


def pick(expression: Expression, picks: Picks, old: OldTensors, blobs: Blobs = ()) -> Tensor:
    """Any entries along each axis of the value of an expression."""
    if isinstance(expression, Unchanged):
        return old.pick(expression.name, picks)
    if isinstance(expression, Zeros):
        return torch.zeros(sides(picks), dtype=expression.dtype)
    if isinstance(expression, StoredValue):
        found = blobs[expression.plan][expression.name].detach()
        for axis, picked in enumerate(picks):
            if len(picked) != found.shape[axis] or isinstance(picked, tuple):
                found = take_along(found, axis, picked)
        return found
    found = pick(expression.source, _picks_of_source(expression, picks), old, blobs)
    if isinstance(expression, Transpose):
        return found.t()
    if isinstance(expression, StackGroups):
        dim, groups = expression.dim, len(picks[0])
        apart = (*found.shape[:dim], groups, len(picks[1 + dim]), *found.shape[dim + 1 :])
        return found.reshape(apart).movedim(dim, 0)
    return found


def _picks_of_source(expression: Take | StackGroups | Transpose, picks: Picks) -> Picks:
    """The picks that an expression needs from its source."""
    if isinstance(expression, Transpose):
        return picks[::-1]
    if isinstance(expression, Take):
        return _picks_through_index(expression.index, expression.dim, picks)
    dim, inner = expression.dim, picks[1:]
    # All groups at once: most of what is read for one, another needs as well.
    each = (_picks_through_index(expression.groups[number], dim, inner)[dim] for number in picks[0])
    return (*inner[:dim], tuple(itertools.chain(*each)), *inner[dim + 1 :])


def _picks_through_index(index: tuple[int, ...], dim: int, picks: Picks) -> Picks:
    """Translate picks among the entries `index` to picks among all entries."""
    picked = picks[dim]
    if isinstance(picked, range):
        chosen: Pick = index[picked.start : picked.stop]
    else:
        chosen = tuple(index[position] for position in picked)
    return (*picks[:dim], chosen, *picks[dim + 1 :])


def _cost(expression: Expression, picks: Picks, old: OldTensors) -> int:
    if isinstance(expression, Take | StackGroups | Transpose):
        return _cost(expression.source, _picks_of_source(expression, picks), old)
    return old.cost(expression.name, picks) if isinstance(expression, Unchanged) else 0
