"""Blocks of the same structure are traced once, where many are looked at on shapes alone.

A trace depends on classes, on shapes, and on what the modules that are opened keep in attributes; of leaves on their
class, their tensors and their plain settings.  Whatever is no plain value counts as the same only if it is the same
object.  An instance that is told of its place in the stack is traced by itself, unless only its leaves are told.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, TypeVar

import torch
from torch import fx, nn

# The first block is kept: while it lives, no other object has the identity of one of its values.
_Known = dict[Hashable, tuple[nn.Module, Any]]
Made = TypeVar("Made")
_KNOWN: ContextVar[_Known | None] = ContextVar("known", default=None)
_PLAIN = (int, float, str, bool, type(None), torch.dtype)
# What a leaf says of its place, which only itself reads; unless the block's own code names it.
_PLACE = re.compile(r"\w*(?:idx|index|layer_id|layer_number)\w*")
_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}


@contextmanager
def traces_shared() -> Iterator[None]:
    """Inside, a block gets a copy of the trace of an earlier one of its structure."""
    token = _KNOWN.set({} if _KNOWN.get() is None else _KNOWN.get())
    try:
        yield
    finally:
        _KNOWN.reset(token)


def shared(block: nn.Module, is_leaf: Callable[[nn.Module], bool], trace: Callable[[], fx.Graph]) -> fx.Graph:
    """The trace of a block: a copy of that of an earlier block of its structure, where traces are shared."""
    return trace() if _KNOWN.get() is None else copy.deepcopy(made_once(block, is_leaf, "trace", trace))


def made_once(
    block: nn.Module, is_leaf: Callable[[nn.Module], bool], what: Callable[[], Hashable] | str, make: Callable[[], Made]
) -> Made:
    """What `make` gives for the first block of this structure, where traces are shared.  Change nothing of it.

    what: says, where it is needed, what is made and what it depends on beside the structure.
    """
    known = _KNOWN.get()
    if known is None:
        return make()
    key = _structure(block, is_leaf), what if isinstance(what, str) else what()
    if key not in known:
        known[key] = block, make()
    found: Made = known[key][1]
    return found


def _structure(block: nn.Module, is_leaf: Callable[[nn.Module], bool]) -> Hashable:
    kind: Any = type(block)
    told = _reads_places(kind)
    parts = []
    for path, module in block.named_modules():
        tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        shapes = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors)
        parts.append((path, type(module), shapes, _values(module, is_leaf(module) and module is not block, told)))
    return tuple(parts)


def _values(module: nn.Module, leaf: bool, told: bool) -> Hashable:
    found: list[tuple[str, Hashable]] = []
    for name, value in sorted(vars(module).items()):
        if name in _OF_EVERY_MODULE or (leaf and not told and _PLACE.fullmatch(name)):
            continue
        if _is_plain(value):
            found.append((name, repr(value)))
        elif not leaf:
            found.append((name, id(value)))
    return tuple(found)


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return all(map(_is_plain, value)) if isinstance(value, tuple | list | set) else isinstance(value, _PLAIN)


@cache
def _reads_places(cls: Any) -> bool:
    """Whether the code of a block names anything that may be a place in its stack."""
    try:
        source = inspect.getsource(inspect.unwrap(cls.forward))
    except (OSError, TypeError):
        return True
    return re.search(r"\.\w*(?:idx|index|layer_id|layer_number)", source) is not None
