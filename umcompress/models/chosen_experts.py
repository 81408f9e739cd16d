"""Which experts a token uses, read off the choice that a model makes while it runs: `topk` or `argmax` of E scores.

E experts, k of them chosen; stacked in one parameter, or each a module of its own.
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
_BEST = (torch.argmax, Tensor.argmax)


class ChosenExperts(TorchFunctionMode):
    """While it is on, fills `shares` with the parameters of experts beside each choice: (k, E) for every name.

    Parameters that are known already are left as they are.  A mixture need not be called itself, so what is its own
    joins the parameters that are `touched`; so do experts that are modules, of which a sample may leave some out.
    """

    def __init__(self, model: nn.Module, shares: dict[str, tuple[int, int]], touched: set[str]) -> None:
        super().__init__()
        self.model, self.shares, self.touched = model, shares, touched
        self._paths = {id(module): path for path, module in model.named_modules()}
        # Of each router, the lines of its code that pick one more expert.
        self._picks: dict[str, set[tuple[str, int]]] = {}

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
        elif called in _BEST:
            self._note_best(sys._getframe(1), *arguments, **named)
        return called(*arguments, **named)

    def _note_best(self, frame: FrameType, scores: Any, dim: int | None = None, keepdim: bool = False) -> None:
        """One expert for each place in the code that picks one: a router of two picks the best of the others, too."""
        path = self._caller(frame)
        if path is None or dim is None or not isinstance(scores, Tensor) or not scores.is_floating_point():
            return
        picks = self._picks.setdefault(path, set())
        picks.add((frame.f_code.co_filename, frame.f_lineno))
        self._note(path, len(picks), scores.shape[dim], modules_only=True)

    def _caller(self, frame: FrameType | None) -> str | None:
        """The path of the module whose method chooses."""
        while frame is not None:
            path: str | None = self._paths.get(id(frame.f_locals.get("self")))
            if path is not None:
                return path
            frame = frame.f_back
        return None

    def _note(self, path: str, k: int, experts: int, modules_only: bool = False) -> None:
        """A router may be part of the mixture that it routes for, or the mixture itself may choose."""
        for place in dict.fromkeys((path, path.rpartition(".")[0])):
            mixture = self.model.get_submodule(place)
            if place and (names := list(in_modules(mixture, experts))):
                whole = [f"{place}.{name}" for name in names]
                self.touched.update(whole, self._own(path, place))
                self.shares.update(dict.fromkeys(whole, (k, experts)))
                return
            found = list(stacked(mixture, experts)) if place and not modules_only else []
            if found:
                self.touched.update(self._own(path, place))
                self.touched.update(f"{place}.{name}" for name, _ in mixture.named_parameters(recurse=False))
                for name in found:
                    self.shares.setdefault(f"{place}.{name}", (k, experts))
                return


    def _own(self, path: str, mixture: str) -> list[str]:
        """All of a router, which may compute with the weight of a layer without calling it."""
        router = self.model.get_submodule(path)
        return [f"{path}.{name}" for name, _ in router.named_parameters()] if path != mixture else []


def in_modules(mixture: nn.Module, experts: int) -> Iterator[str]:
    """Names of the parameters of so many experts that are modules alike, in a list or a mapping beside the choice."""
    for path, holder in mixture.named_children():
        children = [child for child in holder.children() if next(child.parameters(), None) is not None]
        if not isinstance(holder, nn.ModuleList | nn.ModuleDict) or len(children) != experts or experts < 2:
            continue
        shapes = [[(name, tensor.shape) for name, tensor in child.named_parameters()] for child in children]
        if all(shape == shapes[0] for shape in shapes):
            yield from (f"{path}.{name}" for name, _ in holder.named_parameters())


def stacked(mixture: nn.Module, experts: int) -> Iterator[str]:
    """Names of parameters that hold one part for each of so many experts, which come first or lie below each other."""
    for path, module in mixture.named_modules():
        numbers = {value for key, value in vars(module).items() if "num_experts" in key and type(value) is int}
        for name, parameter in module.named_parameters(recurse=False):
            first = parameter.shape[0] if parameter.ndim else 0
            rows = parameter.ndim == 2 and experts in numbers and first % experts == 0 and first > experts
            if (parameter.ndim > 2 and first == experts) or rows:
                yield f"{path}.{name}" if path else name
