"""The tensor half of an edit: each new tensor as a lazy expression of old ones.

Nothing is read until `evaluate`, which gets old tensors from a function that is passed to it (of the live model, of
shards on disk). So every use of a plan computes the same bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from umcompress.errors import CheckError


@dataclass(frozen=True)
class Unchanged:
    """An old tensor, unchanged."""

    name: str


@dataclass(frozen=True)
class Take:
    """Entries `index` of `source` along `dim`."""

    source: Expression
    dim: int
    index: tuple[int, ...]


@dataclass(frozen=True)
class StackGroups:
    """Entries of `source` along `dim` in groups of equal size, stacked on a new first axis."""

    source: Expression
    dim: int
    groups: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Transpose:
    """`source` transposed: plans speak of every weight as (out, in)."""

    source: Expression


@dataclass(frozen=True)
class Zeros:
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class StoredValue:
    """A tensor that is stored next to plan number `plan`."""

    plan: int
    name: str


Expression = Unchanged | Take | StackGroups | Transpose | Zeros | StoredValue
Reader = Callable[[str], Tensor]
Blobs = Sequence[Mapping[str, Tensor]]


class TensorMap:
    """New name -> expression over old names. Plans applied in turn update the same map."""

    def __init__(self, names: Iterable[str]) -> None:
        self.entries: dict[str, Expression] = {name: Unchanged(name) for name in names}

    def take(self, name: str, dim: int, index: tuple[int, ...]) -> None:
        self.entries[name] = Take(self.entries[name], dim, index)

    def zeros(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.entries[name] = Zeros(shape, dtype)

    def blob(self, name: str, plan: int, stored_as: str) -> None:
        self.entries[name] = StoredValue(plan, stored_as)

    def flip(self, name: str) -> None:
        self.entries[name] = Transpose(self.entries[name])

    def forget(self, path: str) -> None:
        """Remove the tensors of a module that was deleted."""
        self.entries = {n: e for n, e in self.entries.items() if not n.startswith(f"{path}.")}

    def keep_only(self, names: Iterable[str]) -> None:
        """Remove tensors that the model no longer has. CheckError if one that it has got no expression."""
        wanted = list(names)
        if unknown := [name for name in wanted if name not in self.entries]:
            raise CheckError("follow every tensor through the plan", f"no value for {', '.join(unknown[:5])}")
        self.entries = {name: self.entries[name] for name in wanted}

    def rename(self, prefixes: Mapping[str, str]) -> None:
        """Replace leading module paths, all at once."""

        def renamed(name: str) -> str:
            for old, new in prefixes.items():
                if name.startswith(f"{old}."):
                    return new + name[len(old) :]
            return name

        self.entries = {renamed(name): expression for name, expression in self.entries.items()}

    def sources(self) -> set[str]:
        """Old names that some expression still needs."""
        return {name for expression in self.entries.values() if (name := source_of(expression)) is not None}


def source_of(expression: Expression) -> str | None:
    """The old tensor at the root of an expression, if there is one."""
    while isinstance(expression, Take | StackGroups | Transpose):
        expression = expression.source
    return expression.name if isinstance(expression, Unchanged) else None


def evaluate(expression: Expression, read: Reader, blobs: Blobs = ()) -> Tensor:
    """Compute one new tensor. The result shares no memory with a blob."""
    if isinstance(expression, Unchanged):
        return read(expression.name)
    if isinstance(expression, Take):
        return _select(evaluate(expression.source, read, blobs), expression.dim, expression.index)
    if isinstance(expression, StackGroups):
        groups, dim = expression.groups, expression.dim
        flat = _select(evaluate(expression.source, read, blobs), dim, tuple(itertools.chain(*groups)))
        stacked = flat.reshape(*flat.shape[:dim], len(groups), len(groups[0]), *flat.shape[dim + 1 :])
        return stacked.movedim(dim, 0).contiguous()
    if isinstance(expression, Transpose):
        return evaluate(expression.source, read, blobs).t().contiguous()
    if isinstance(expression, Zeros):
        return torch.zeros(expression.shape, dtype=expression.dtype)
    return blobs[expression.plan][expression.name].detach().clone()


def _select(source: Tensor, dim: int, index: tuple[int, ...]) -> Tensor:
    return source.index_select(dim, torch.tensor(index, dtype=torch.long, device=source.device))
