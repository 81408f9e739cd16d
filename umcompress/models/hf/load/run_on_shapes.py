"""Run a skeleton for its shapes: parameters are on the meta device, whatever else there is has values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

_META = torch.device("meta")
_CHOOSING = (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)


class OnShapes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What does not follow from a parameter keeps its values: token ids, places of pictures, positions, masks.

    A model may look at those to find its way; only what meets a parameter becomes a shape.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        on_meta = [value.is_meta for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
        if any(on_meta) and not all(on_meta):
            if getattr(func, "overloadpacket", None) in _CHOOSING:
                args = (args[0], _by_number(args[1]), *args[2:])
            args, kwargs = tree_map(_shape, (args, kwargs))
        elif not any(on_meta) and kwargs.get("device") == _META:
            kwargs = kwargs | {"device": torch.device("cpu")}
        elif any(on_meta) and getattr(func, "overloadpacket", None) is torch.ops.aten._to_copy:
            # Made like something that has values (`type_as`): it stays a shape.
            kwargs = kwargs | {"device": _META}
        return func(*args, **kwargs)


def _shape(value: Any) -> Any:
    return value.to(_META) if isinstance(value, Tensor) else value


def _by_number(places: list[Any]) -> list[Any]:
    """Places that are chosen by a mask as their numbers: a mask without values chooses nothing known."""
    chosen = [place.nonzero(as_tuple=True) if _is_mask(place) else (place,) for place in places]
    return [one for several in chosen for one in several]


def _is_mask(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.bool and not value.is_meta
