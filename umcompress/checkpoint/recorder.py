"""Record operations on meta tensors, to replay them later on any part of the real tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from umcompress.checkpoint.joins import Concatenated, OperationResult, Permuted, Sliced
from umcompress.checkpoint.parts import PartialTensor

aten = torch.ops.aten


class CannotReplay(ValueError):
    """An operation was recorded that cannot be replayed on the real tensors."""


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context that records operations on tensors from `watch`; `made` says how a tensor is derived."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: dict[int, PartialTensor] = {}
        # Tensors are told apart by identity, so none may go before the end.
        self._kept: list[Tensor] = []

    def watch(self, source: PartialTensor) -> Tensor:
        """A meta tensor that stands for `source`."""
        tensor = torch.empty(source.shape, dtype=source.dtype, device="meta")
        self._know(tensor, source)
        return tensor

    def made(self, tensor: Tensor) -> PartialTensor:
        """How a tensor is derived from the watched ones."""
        return self._known[id(tensor)]

    def _know(self, tensor: Tensor, source: PartialTensor) -> None:
        self._known[id(tensor)] = source
        self._kept.append(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = (args, kwargs or {})
        result = func(*args, **(kwargs or {}))
        if func._schema.is_mutable or func is aten.as_strided.default:
            raise CannotReplay(f"{func} changes tensors in place")
        called = pytree.tree_map(self._source, arguments)
        for place, tensor in enumerate(pytree.tree_leaves(result)):
            if isinstance(tensor, Tensor):
                self._know(tensor, _made(func, called, place, tensor))
        return result

    def _source(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in self._known and leaf.is_meta:
            raise CannotReplay("a tensor without values comes from elsewhere")
        return self._known.get(id(leaf), leaf)


def _made(func: Any, called: tuple[Any, Any], place: int, result: Tensor) -> PartialTensor:
    """called: arguments and keyword arguments, with what each tensor is made of in its place."""
    constant = any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(called))
    # Strides are ignored: only values matter here.
    known = None if constant or called[1].keys() - {"memory_format"} else _KNOWN.get(func)
    if known is not None and (found := known(called[0], place, result)) is not None:
        return found
    return OperationResult(func, called, place, tuple(result.shape), result.dtype)


def _join(fresh: bool) -> Callable[[Any, int, Tensor], PartialTensor | None]:
    def join(args: Any, place: int, result: Tensor) -> PartialTensor | None:
        parts, axis = args[0], _axis(args[1] if len(args) > 1 else 0, result.ndim)
        if any(len(part.shape) != result.ndim - fresh for part in parts):
            return None
        return Concatenated(tuple(parts), axis, fresh, tuple(result.shape), result.dtype)

    return join


def _split(args: Any, place: int, result: Tensor) -> PartialTensor | None:
    source, sizes, axis = args[0], args[1], _axis(args[2] if len(args) > 2 else 0, result.ndim)
    start = sizes * place if isinstance(sizes, int) else sum(sizes[:place])
    return Sliced(source, axis, start, False, tuple(result.shape))


def _slice(args: Any, place: int, result: Tensor) -> PartialTensor | None:
    source, given = args[0], (*args[1:], *(0, None, None, 1)[len(args) - 1 :])
    axis = _axis(given[0], result.ndim)
    start = max(0, min(_axis(given[1] or 0, source.shape[axis]), source.shape[axis]))
    return Sliced(source, axis, start, False, tuple(result.shape)) if given[3] == 1 else None


def _select(args: Any, place: int, result: Tensor) -> PartialTensor | None:
    source, axis = args[0], _axis(args[1], result.ndim + 1)
    return Sliced(source, axis, _axis(args[2], source.shape[axis]), True, tuple(result.shape))


def _unbind(args: Any, place: int, result: Tensor) -> PartialTensor | None:
    return Sliced(args[0], _axis(args[1] if len(args) > 1 else 0, result.ndim + 1), place, True, tuple(result.shape))


def _squeeze(args: Any, place: int, result: Tensor) -> PartialTensor | None:
    source, axis = args[0], _axis(args[1], len(args[0].shape))
    if tuple(result.shape) == tuple(source.shape):
        return _same(args, place, result)
    return Sliced(source, axis, 0, True, tuple(result.shape))


def _unsqueeze(args: Any, place: int, result: Tensor) -> PartialTensor | None:
    return Concatenated((args[0],), _axis(args[1], result.ndim), True, tuple(result.shape), result.dtype)


def _transpose(args: Any, place: int, result: Tensor) -> PartialTensor | None:
    order = list(range(result.ndim))
    one, other = (_axis(axis, result.ndim) for axis in (args[1:] or (0, -1)))
    order[one], order[other] = order[other], order[one]
    return Permuted(args[0], tuple(order), tuple(result.shape)) if result.ndim > 1 else None


def _permute(args: Any, place: int, result: Tensor) -> PartialTensor | None:
    return Permuted(args[0], tuple(_axis(axis, result.ndim) for axis in args[1]), tuple(result.shape))


def _same(args: Any, place: int, result: Tensor) -> PartialTensor | None:
    source: PartialTensor = args[0]
    return source


def _axis(axis: int, sides: int) -> int:
    return axis + sides if axis < 0 else axis


_KNOWN: dict[Any, Callable[[Any, int, Tensor], PartialTensor | None]] = {
    aten.stack.default: _join(fresh=True), aten.cat.default: _join(fresh=False),
    aten.split.Tensor: _split, aten.split_with_sizes.default: _split, aten.slice.Tensor: _slice,
    aten.select.int: _select, aten.unbind.int: _unbind, aten.squeeze.dim: _squeeze, aten.unsqueeze.default: _unsqueeze,
    aten.transpose.int: _transpose, aten.t.default: _transpose, aten.permute.default: _permute,
    aten.clone.default: _same, aten.detach.default: _same, aten.alias.default: _same,
}  # fmt: skip
