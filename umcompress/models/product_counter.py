"""Count the operations of matrix products as they run; on shapes alone each kind of call is worked out once.

torch's own counter works out the shape of every result anew, and of many operations in Python. What an operation gives
for tensors without values depends on their shapes, strides and types only, so it is kept for the whole process.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


class _Like(NamedTuple):
    """A tensor without values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def made(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")


# Operation and what it was called with -> floating-point operations and what it gave.
_KNOWN: dict[Hashable, tuple[int, Any]] = {}


class ProductCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is on, adds up in `operations` what `FlopCounterMode` counts.

    further: operations that torch does not know -> floating-point operations from shapes.
    """

    def __init__(self, further: Mapping[Any, Callable[..., int]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0
        self._counts = FlopCounterMode(display=False, custom_mapping=dict(further)).flop_registry
        self._further = tuple(further)

    def __torch_dispatch__(
        self, called: Any, types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        named = named or {}
        if not isinstance(called, torch._ops.OpOverload):
            return NotImplemented
        key = _key(called, arguments, named)
        if key is not None and (known := _KNOWN.get(key)) is not None:
            self.operations += known[0]
            return _made(known[1])
        if called not in self._counts:
            with self:
                if (given := called.decompose(*arguments, **named)) is not NotImplemented:
                    return given
        given = called(*arguments, **named)
        packet = called._overloadpacket
        count = self._counts.get(packet)
        operations = int(count(*arguments, **named, out_val=given)) if count is not None else 0
        self.operations += operations
        if key is not None and packet not in self._further and (like := _like(given)) is not None:
            _KNOWN[key] = operations, like
        return given


def _key(called: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Hashable:
    """What the shape of the result depends on; None where it may depend on values, or something is written to."""
    if called._schema.is_mutable:
        return None
    tensors: list[Tensor] = []
    more = tuple((name, _described((value,), tensors)) for name, value in named.items())
    found = called, _described(arguments, tensors), more
    return found if tensors and all(tensor.is_meta for tensor in tensors) else None


def _described(values: Any, tensors: list[Tensor]) -> Hashable:
    """Values that are equal by it are alike; numbers with their type, since 1 equals True and 1.0."""
    found: list[Hashable] = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
            found.append((value.shape, value.stride(), value.dtype))
        elif isinstance(value, list | tuple):
            found.append(_described(value, tensors))
        else:
            found.append((type(value), value))
    return tuple(found)


def _like(given: Any) -> Any:
    """What to make such a result from; None where it is anything but tensors without values."""
    if isinstance(given, Tensor):
        return _Like(tuple(given.shape), given.stride(), given.dtype) if given.is_meta else None
    if isinstance(given, list | tuple):
        parts = [_like(one) for one in given]
        return None if any(part is None for part in parts) else type(given)(parts)
    return None


def _made(like: Any) -> Any:
    return like.made() if isinstance(like, _Like) else type(like)(map(_made, like))
