"""Count the work of equal blocks of a skeleton once: on shapes alone each of them does the same.

A block is equal to an earlier one of its list when all their modules are of the same classes, with the same shapes and
settings. It is not run then: its work and what it gives are those of the earlier one's last call with such arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, cast

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from umcompress.graph.lower import lowered_graph, original_class, python_source

# What a module says of its place among the others, not of what it computes.
_NUMBERS = ("idx", "index", "layer_id", "layer_number")
_PLAIN = (int, float, str, bool, type(None), torch.dtype)


class EqualBlocks:
    """The blocks of a model that need not be run, as `counted_once` makes it."""

    def __init__(self, in_place: Mapping[str, str], work: Callable[[], float]) -> None:
        """in_place: as `equal_blocks` finds them. work: what was counted so far."""
        self.extra = 0.0
        """The work of the blocks that were not run."""
        self._work = work
        self._in_place = in_place
        self._used: set[str] = set()
        self._last: dict[tuple[str, Hashable], tuple[Any, float]] = {}

    @contextmanager
    def counted_once(self, model: nn.Module) -> Iterator[None]:
        """Inside, blocks that are equal to an earlier one are not run."""
        changed = []
        try:
            for path in {*self._in_place, *self._in_place.values()}:
                block: Any = model.get_submodule(path)
                if "forward" not in vars(block):
                    changed.append(block)
                    block.forward = self._instead(path, block.forward)
            yield
        finally:
            for block in changed:
                del block.forward

    def _instead(self, path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        one = self._in_place.get(path)

        def call(*args: Any, **kwargs: Any) -> Any:
            shapes = _shapes(args, kwargs)
            if one is not None and (one, shapes) in self._last:
                given, work = self._last[one, shapes]
                self.extra += work
                self._used.add(path)
                return given
            before = self._work() + self.extra
            given = forward(*args, **kwargs)
            self._last[path, shapes] = given, self._work() + self.extra - before
            return given

        return call

    def known(self, path: str, args: Any, kwargs: Any) -> bool:
        """Whether a block that is called with these is not run."""
        return path in self._in_place and (self._in_place[path], _shapes(args, kwargs)) in self._last

    def further_names(self, names: Iterable[str]) -> dict[str, str]:
        """Of names of parameters of blocks that ran: those of the blocks in whose place they did -> the name itself."""
        found: dict[str, str] = {}
        depths: dict[int, list[str]] = {}
        for path in self._used:
            depths.setdefault(path.count(".") + 1, []).append(path)
        known = {name: name for name in names}
        for depth in sorted(depths, reverse=True):  # lists within blocks first
            inside: dict[str, list[str]] = {}
            for name in known:
                start = ".".join(name.split(".")[:depth])
                inside.setdefault(start, []).append(name)
            for path in depths[depth]:
                one = self._in_place[path]
                found |= {path + name.removeprefix(one): known[name] for name in inside.get(one, ())}
            known |= found
        return found


def _shapes(args: Any, kwargs: Any) -> Hashable:
    return tuple(tuple(leaf.shape) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))


def equal_blocks(model: nn.Module) -> dict[str, str]:
    """Path of each block that need not be run -> the one in its place, an earlier one of its list."""
    found: dict[str, str] = {}
    for path, stack in model.named_modules():
        if isinstance(stack, nn.ModuleList):
            first: dict[Hashable, str] = {}
            for name, block in stack.named_children():
                place = f"{path}.{name}" if path else name
                if (one := first.setdefault(_structure(block), place)) != place:
                    found[place] = one
    return found


def _structure(block: nn.Module) -> Hashable:
    parts = []
    for path, module in block.named_modules():
        tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        shapes = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors)
        parts.append((path, kind_of(module), shapes, _settings(module)))
    return tuple(parts)


def kind_of(module: nn.Module) -> Hashable:
    """The class; of what was rewritten, which has a class of its own, what it was and the code that it runs."""
    of_graph = isinstance(module, fx.GraphModule)
    graph = module.graph if isinstance(module, fx.GraphModule) else lowered_graph(module)
    kind: Any = type(module)
    if graph is None:
        return cast(Hashable, kind)
    source, space = python_source(graph)
    names = tuple(sorted((name, id(value)) for name, value in space.items()))
    return fx.GraphModule if of_graph else original_class(module), source, names


def _settings(module: nn.Module) -> Hashable:
    """What a module's attributes say, but for its number; numbers, texts, collections and records of them."""
    found = []
    for name, value in sorted(vars(module).items()):
        if not name.startswith("_") and not any(word in name for word in _NUMBERS) and _is_plain(value):
            found.append((name, repr(value)))
    return tuple(found)


def _is_plain(value: object) -> bool:
    if is_dataclass(value) and not isinstance(value, type):
        # Configurations are dataclasses as well: they say the same to all layers, and some cannot be read as a whole.
        kind: Any = type(value)
        fixed = bool(kind.__dataclass_params__.frozen)
        return fixed and all(_is_plain(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return all(map(_is_plain, value)) if isinstance(value, tuple | list | set) else isinstance(value, _PLAIN)
