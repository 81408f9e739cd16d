"""Which parameters the results of a run depend on: every operation of it is followed, from weights to results.

On shapes it costs the same for every size, and finds the same for a model in memory, on disk and planned.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from umcompress.models.measure import called_in

Run = Callable[[nn.Module], Iterable[Tensor]]


def read_in_run(
    model: nn.Module, run: Run, on_shapes: bool = True, around: AbstractContextManager[object] | None = None
) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the parameters that the results of a run depend on, and of those whose modules it calls.

    run: given a copy of the model without values, runs it and returns all results; without `on_shapes`, the model.
    around: what it runs in. Operations are followed as the model calls them, whatever that context makes of them.
    """
    runs = without_values(model) if on_shapes else model
    following = _Following(runs)
    with called_in(runs) as called, torch.no_grad(), around or nullcontext():
        with following:
            results = list(run(runs))
        reached = following.reached(results)
    return reached, frozenset(called)


def without_values(model: nn.Module) -> nn.Module:
    """A copy whose parameters are on the meta device; what is tied stays tied."""
    shapes: dict[int, Any] = {
        id(one): nn.Parameter(torch.empty_like(one, device="meta"), requires_grad=False) for one in model.parameters()
    }
    return copy.deepcopy(model, shapes)


class _Following(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Each storage -> the parameters that its values depend on, as the bits of one number.

    Views share their base's storage and so its parameters: what is found may be too much, and never too little.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        named = list(model.named_parameters(remove_duplicate=False))
        self.names = [name for name, _ in named]
        # The storages themselves: while they are held, no other one gets their place in memory.
        self._bits: dict[int, tuple[Any, int]] = {}
        for place, (_, parameter) in enumerate(named):
            self._add(parameter, 1 << place)

    def reached(self, results: Iterable[Tensor]) -> frozenset[str]:
        bits = 0
        for result in results:
            bits |= self._of(result)
        return frozenset(name for place, name in enumerate(self.names) if bits >> place & 1)

    def _of(self, tensor: Tensor) -> int:
        return self._bits.get(tensor.untyped_storage()._cdata, (None, 0))[1]

    def _add(self, tensor: Tensor, bits: int) -> None:
        storage = tensor.untyped_storage()
        before = self._bits.get(storage._cdata, (None, 0))[1]
        self._bits[storage._cdata] = (storage, before | bits)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        bits = 0
        for value in _tensors((args, kwargs)):
            bits |= self._of(value)
        if bits:
            written = _written(func, args, kwargs) if func._schema.is_mutable else ()
            for value in (*_tensors(out), *written):
                self._add(value, bits)
        return out


def _tensors(values: Any) -> Iterable[Tensor]:
    return (value for value in tree_iter(values) if isinstance(value, Tensor))


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterable[Tensor]:
    """Arguments that an operation writes into."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from _tensors(args[place] if place < len(args) else kwargs.get(argument.name))
