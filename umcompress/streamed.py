"""Run a skeleton whose weights lie on disk: one block at a time is in memory, loaded when it is its turn.

What lies outside of the blocks (embeddings, final norm, head) is held for the whole time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from umcompress.graph.model_graph import ModelFamily
from umcompress.lockstep import Lockstep
from umcompress.models.base import Portions, Runner

Read = Callable[[str], Tensor]
# Portions of calibration data that pass the blocks together: what each needs between two blocks is held for all.
TOGETHER = 32
Held = list[tuple[nn.Module, str, nn.Parameter]]


@contextmanager
def streamed(model: nn.Module, family: ModelFamily, read: Read) -> Iterator[Lockstep]:
    """Give the skeleton `model` its weights while it runs; afterwards it is a skeleton again.

    read: name of a parameter in the module -> its tensor, of the dtype to compute in. A block stays until another
    one is called. Runs that go by the lockstep which this gives pass each block together: it is read once for all.
    """
    blocks = block_paths(model, family)
    inside = {id(module) for path in blocks for module in model.get_submodule(path).modules()}
    outside: Held = []
    shared: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        if id(module) not in inside:
            outside += _load(module, path, read, shared)
    shelf = _OneBlock(read)
    hooks = [
        model.get_submodule(path).register_forward_pre_hook(partial(shelf.enter, path)) for path in blocks
    ]
    try:
        yield shelf.lockstep
    finally:
        for hook in hooks:
            hook.remove()
        shelf.clear()
        _restore(outside)


class _OneBlock:
    """The weights of the block that was called last."""

    def __init__(self, read: Read) -> None:
        self.read, self.lockstep = read, Lockstep()
        self._path: str | None = None
        self._held: Held = []

    def enter(self, path: str, block: nn.Module, _: object) -> None:
        self.lockstep.pause()
        if self._path == path:
            return
        self.clear()
        shared: dict[int, nn.Parameter] = {}
        for name, module in block.named_modules(prefix=path):
            self._held += _load(module, name, self.read, shared)
        self._path = path

    def clear(self) -> None:
        _restore(self._held)
        self._held, self._path = [], None


def feed_together(runner: Runner, items: Sequence[Any], lockstep: Lockstep) -> None:
    """Calibration items through the model block by block: each block is read once for as many as `TOGETHER` portions.

    What a portion needs between two blocks is held for all of them at once.
    """
    portions = runner.portions(items) if isinstance(runner, Portions) else [[item] for item in items]
    for start in range(0, len(portions), TOGETHER):
        lockstep.run([partial(runner.feed, portion) for portion in portions[start : start + TOGETHER]])


def block_paths(model: nn.Module, family: ModelFamily) -> list[str]:
    """Paths of all blocks of all stacks."""
    paths = []
    for path in family.stacks(model).values():
        modules = model.get_submodule(path)
        assert isinstance(modules, nn.ModuleList)
        paths += [f"{path}.{index}" for index in range(len(modules))]
    return paths


def _load(module: nn.Module, path: str, read: Read, shared: dict[int, nn.Parameter]) -> Held:
    """Put weights into one module; what was there before. Tied parameters stay one tensor."""
    before = []
    for name, parameter in list(module.named_parameters(recurse=False)):
        if not parameter.is_meta:
            continue
        if id(parameter) not in shared:
            with torch.no_grad():
                value = read(f"{path}.{name}" if path else name)
            shared[id(parameter)] = nn.Parameter(value, requires_grad=False)
        before.append((module, name, parameter))
        module._parameters[name] = shared[id(parameter)]
    return before


def _restore(before: Held) -> None:
    for module, name, parameter in before:
        module._parameters[name] = parameter
