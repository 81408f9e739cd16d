"""Tensors made of others by moving elements: stacked, joined, cut, turned. Any part of one is made alone.

What a family does to its tensors when it loads or saves them becomes a tree of these; see `recorder`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from umcompress.checkpoint.parts import Parts, Region, Stored, cut_out, sides, whole


class Join:
    """One that needs, for a region, one region each of some others; what that is, subclasses say."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def needs(self, region: Region) -> Iterator[tuple[Parts, Region]]:
        raise NotImplementedError

    def part(self, region: Region) -> Tensor:
        raise NotImplementedError

    def cost(self, region: Region) -> int:
        return sum(source.cost(inner) for source, inner in self.needs(region))

    def stored(self, region: Region) -> Stored | None:
        found = list(self.needs(region))
        return found[0][0].stored(found[0][1]) if len(found) == 1 and found[0][0].dtype == self.dtype else None


@dataclass(frozen=True, eq=False)
class Joined(Join):
    """Tensors one after the other along an axis that they have, or (`fresh`) along one of their number."""

    parts: tuple[Parts, ...]
    axis: int
    fresh: bool
    shape: tuple[int, ...]
    dtype: torch.dtype

    def needs(self, region: Region) -> Iterator[tuple[Parts, Region]]:
        return ((source, inner) for source, inner, _ in self._places(region))

    def part(self, region: Region) -> Tensor:
        # Filled in one after the other: all of them and the result at once would take twice the memory.
        out = torch.empty(sides(region), dtype=self.dtype)
        for source, inner, span in self._places(region):
            place = out.select(self.axis, span.start) if self.fresh else out.narrow(self.axis, span.start, len(span))
            place.copy_(source.part(inner))
        return out

    def _places(self, region: Region) -> Iterator[tuple[Parts, Region, range]]:
        """What is needed of each tensor, and where it goes along the axis of the result."""
        wanted, before, after = region[self.axis], region[: self.axis], region[self.axis + 1 :]
        if self.fresh:
            for at, number in enumerate(wanted):
                yield self.parts[number], (*before, *after), range(at, at + 1)
            return
        start = 0
        for source in self.parts:
            end = start + source.shape[self.axis]
            low, high = max(start, wanted.start), min(end, wanted.stop)
            if low < high:
                place = range(low - wanted.start, high - wanted.start)
                yield source, (*before, range(low - start, high - start), *after), place
            start = end


@dataclass(frozen=True, eq=False)
class Cut(Join):
    """Entries of a tensor along an axis, from `start` on; `drop`: one entry, whose axis is gone."""

    source: Parts
    axis: int
    start: int
    drop: bool
    shape: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.source.dtype

    def needs(self, region: Region) -> Iterator[tuple[Parts, Region]]:
        at = range(1) if self.drop else region[self.axis]
        moved = range(at.start + self.start, at.stop + self.start)
        yield self.source, (*region[: self.axis], moved, *region[self.axis + (not self.drop) :])

    def part(self, region: Region) -> Tensor:
        ((source, inner),) = self.needs(region)
        found = source.part(inner)
        return found.select(self.axis, 0) if self.drop else found


@dataclass(frozen=True, eq=False)
class Turned(Join):
    """A tensor with its axes in another order."""

    source: Parts
    order: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.source.dtype

    def needs(self, region: Region) -> Iterator[tuple[Parts, Region]]:
        yield self.source, tuple(region[self.order.index(axis)] for axis in range(len(self.order)))

    def part(self, region: Region) -> Tensor:
        ((source, inner),) = self.needs(region)
        return source.part(inner).permute(self.order)

    def stored(self, region: Region) -> Stored | None:
        return None


@dataclass(frozen=True, eq=False)
class Called(Join):
    """Result number `place` of any other operation, which is done on whole tensors."""

    function: Any
    arguments: Any
    place: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def needs(self, region: Region) -> Iterator[tuple[Parts, Region]]:
        for leaf in pytree.tree_leaves(self.arguments):
            if _is_tensor(leaf):
                yield leaf, whole(leaf.shape)

    def part(self, region: Region) -> Tensor:
        def value(leaf: Any) -> Any:
            return leaf.part(whole(leaf.shape)).contiguous() if _is_tensor(leaf) else leaf

        args, kwargs = pytree.tree_map(value, self.arguments)
        made: Sequence[Tensor] = pytree.tree_leaves(self.function(*args, **kwargs))
        return cut_out(made[self.place], region)

    def stored(self, region: Region) -> Stored | None:
        return None


def _is_tensor(leaf: object) -> bool:
    return hasattr(leaf, "part") and hasattr(leaf, "cost")


def stacked(parts: Sequence[Parts]) -> Join:
    """Tensors of one shape on a new first axis."""
    return Joined(tuple(parts), 0, True, (len(parts), *parts[0].shape), parts[0].dtype)


def entry_of(source: Parts, index: int) -> Join:
    """One entry on the first axis."""
    return Cut(source, 0, index, True, tuple(source.shape[1:]))
