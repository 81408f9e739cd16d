"""Tensors derived from others by stacking, concatenation, slicing and permutation; any part can be computed alone.

The operations that a family applies to its tensors on loading or saving become a tree of these; see `recorder`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from umcompress.checkpoint.parts import FileRange, PartialTensor, Region, cut_out, sides, whole


class DerivedTensor:
    """A tensor of which each region is computed from one region each of other tensors."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def needs(self, region: Region) -> Iterator[tuple[PartialTensor, Region]]:
        raise NotImplementedError

    def part(self, region: Region) -> Tensor:
        raise NotImplementedError

    def cost(self, region: Region) -> int:
        return sum(source.cost(inner) for source, inner in self.needs(region))

    def stored(self, region: Region) -> FileRange | None:
        found = list(self.needs(region))
        return found[0][0].stored(found[0][1]) if len(found) == 1 and found[0][0].dtype == self.dtype else None


@dataclass(frozen=True, eq=False)
class Concatenated(DerivedTensor):
    """Tensors concatenated along an axis, or (`fresh`) stacked along a new one."""

    parts: tuple[PartialTensor, ...]
    axis: int
    fresh: bool
    shape: tuple[int, ...]
    dtype: torch.dtype

    def needs(self, region: Region) -> Iterator[tuple[PartialTensor, Region]]:
        return ((source, inner) for source, inner, _ in self._places(region))

    def part(self, region: Region) -> Tensor:
        # Filled in one after the other: all of them and the result at once would take twice the memory.
        out = torch.empty(sides(region), dtype=self.dtype)
        for source, inner, span in self._places(region):
            place = out.select(self.axis, span.start) if self.fresh else out.narrow(self.axis, span.start, len(span))
            place.copy_(source.part(inner))
        return out

    def _places(self, region: Region) -> Iterator[tuple[PartialTensor, Region, range]]:
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
class Sliced(DerivedTensor):
    """A slice of a tensor along an axis, from `start` on; `drop`: one entry, without the axis."""

    source: PartialTensor
    axis: int
    start: int
    drop: bool
    shape: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.source.dtype

    def needs(self, region: Region) -> Iterator[tuple[PartialTensor, Region]]:
        at = range(1) if self.drop else region[self.axis]
        moved = range(at.start + self.start, at.stop + self.start)
        yield self.source, (*region[: self.axis], moved, *region[self.axis + (not self.drop) :])

    def part(self, region: Region) -> Tensor:
        ((source, inner),) = self.needs(region)
        found = source.part(inner)
        return found.select(self.axis, 0) if self.drop else found


@dataclass(frozen=True, eq=False)
class Permuted(DerivedTensor):
    """A tensor with its axes in another order."""

    source: PartialTensor
    order: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.source.dtype

    def needs(self, region: Region) -> Iterator[tuple[PartialTensor, Region]]:
        yield self.source, tuple(region[self.order.index(axis)] for axis in range(len(self.order)))

    def part(self, region: Region) -> Tensor:
        ((source, inner),) = self.needs(region)
        return source.part(inner).permute(self.order)

    def stored(self, region: Region) -> FileRange | None:
        return None


@dataclass(frozen=True, eq=False)
class OperationResult(DerivedTensor):
    """Result number `place` of any other operation, computed on whole tensors."""

    function: Any
    arguments: Any
    place: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def needs(self, region: Region) -> Iterator[tuple[PartialTensor, Region]]:
        for leaf in pytree.tree_leaves(self.arguments):
            if _is_tensor(leaf):
                yield leaf, whole(leaf.shape)

    def part(self, region: Region) -> Tensor:
        def value(leaf: Any) -> Any:
            return leaf.part(whole(leaf.shape)).contiguous() if _is_tensor(leaf) else leaf

        args, kwargs = pytree.tree_map(value, self.arguments)
        made: Sequence[Tensor] = pytree.tree_leaves(self.function(*args, **kwargs))
        return cut_out(made[self.place], region)

    def stored(self, region: Region) -> FileRange | None:
        return None


def _is_tensor(leaf: object) -> bool:
    return hasattr(leaf, "part") and hasattr(leaf, "cost")


def stacked(parts: Sequence[PartialTensor]) -> DerivedTensor:
    """Tensors of one shape on a new first axis."""
    return Concatenated(tuple(parts), 0, True, (len(parts), *parts[0].shape), parts[0].dtype)


def entry_of(source: PartialTensor, index: int) -> DerivedTensor:
    """One entry on the first axis."""
    return Sliced(source, 0, index, True, tuple(source.shape[1:]))
