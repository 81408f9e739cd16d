"""Which stacked experts a token uses, read off the choice that a model makes while it runs: `topk` of E scores.

E experts, k of them chosen.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_TOP = (torch.topk, Tensor.topk)


class ChosenExperts(TorchFunctionMode):
    """While it is on, fills `shares` with the stacked parameters beside each choice: (k, E) for every name.

    Parameters that are known already are left as they are.  A mixture need not be called itself, so what is its own
    joins the parameters that are `touched`.
    """

    def __init__(self, model: nn.Module, shares: dict[str, tuple[int, int]], touched: set[str]) -> None:
        super().__init__()
        self.model, self.shares, self.touched = model, shares, touched
        self._paths = {id(module): path for path, module in model.named_modules()}

    def __torch_function__(
        self, called: Any, types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        named = named or {}
        if called in _TOP:
            scores, k = arguments[0], arguments[1] if len(arguments) > 1 else named.get("k")
            along = arguments[2] if len(arguments) > 2 else named.get("dim", -1)
            path = self._caller(sys._getframe(1))
            if isinstance(scores, Tensor) and isinstance(k, int) and path is not None:
                self._note(path, k, scores.shape[along])
        return called(*arguments, **named)

    def _caller(self, frame: FrameType | None) -> str | None:
        """The path of the module whose method chooses."""
        while frame is not None:
            path: str | None = self._paths.get(id(frame.f_locals.get("self")))
            if path is not None:
                return path
            frame = frame.f_back
        return None

    def _note(self, path: str, k: int, experts: int) -> None:
        """A router may be part of the mixture that it routes for, or the mixture itself may choose."""
        for place in dict.fromkeys((path, path.rpartition(".")[0])):
            mixture = self.model.get_submodule(place)
            found = list(stacked(mixture, experts)) if place else []
            if found:
                self.touched.update(f"{place}.{name}" for name, _ in mixture.named_parameters(recurse=False))
                for name in found:
                    self.shares.setdefault(f"{place}.{name}", (k, experts))
                return


def stacked(mixture: nn.Module, experts: int) -> Iterator[str]:
    """Names of parameters that hold one part for each of so many experts, which come first or lie below each other."""
    for path, module in mixture.named_modules():
        numbers = {value for key, value in vars(module).items() if "num_experts" in key and type(value) is int}
        for name, parameter in module.named_parameters(recurse=False):
            first = parameter.shape[0] if parameter.ndim else 0
            rows = parameter.ndim == 2 and experts in numbers and first % experts == 0 and first > experts
            if (parameter.ndim > 2 and first == experts) or rows:
                yield f"{path}.{name}" if path else name
