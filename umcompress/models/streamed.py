"""Run a skeleton whose weights lie on disk: one block at a time is in memory, loaded when it is its turn.

Embeddings and heads that are large are held the same way, each while it is the one in use; whatever else lies
outside of the blocks (norms, connectors) is held for the whole time.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from umcompress.graph.model_graph import ModelFamily
from umcompress.models.lockstep import Lockstep
from umcompress.models.runner import Runner
from umcompress.progress import passed

Read = Callable[[str], Tensor]
# Portions of calibration data that pass the blocks together: what each needs between two blocks is held for all.
TOGETHER = 32
# Bytes from which on an embedding or a linear layer outside of all blocks is held only while it is used.
LARGE = 64 * 2**20
# From so many bytes on that were read it is worth the time to look for free memory.
TRIMMED = 16 * 2**20
Held = list[tuple[nn.Module, str, nn.Parameter]]


@contextmanager
def streamed(
    model: nn.Module, family: ModelFamily, read: Read, skips: Callable[[str, Any, Any], bool] = lambda *_: False
) -> Iterator[Lockstep]:
    """Give the skeleton `model` its weights while it runs; afterwards it is a skeleton again.

    read: name of a parameter in the module -> its tensor, of the dtype to compute in. A block stays until another
    one is called, a large layer outside of the blocks until a block or another layer is. Runs that go by the lockstep
    which this gives pass each of them together: it is read once for all.

    skips: path, arguments and keywords of a call of a block -> whether it will not run, and so needs no weights.
    """
    blocks, large = block_paths(model, family), large_layers(model, family)
    inside = {id(module) for path in (*blocks, *large) for module in model.get_submodule(path).modules()}
    outside: Held = []
    shared: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        if id(module) not in inside:
            outside += _load(module, path, read, shared)
    give_back(outside)
    lockstep = Lockstep()
    layer = _OneOf(read, lockstep)
    block = _OneOf(read, lockstep, layer, skips)
    with ExitStack() as stack:
        stack.callback(_restore, outside)
        for path in large:
            stack.callback(_restore, _leave_out(model.get_submodule(path), path, read))
        for shelf, paths in ((block, blocks), (layer, large)):
            stack.callback(shelf.clear)
            for path in paths:
                module = model.get_submodule(path)
                stack.callback(module.register_forward_pre_hook(partial(shelf.enter, path), with_kwargs=True).remove)
        yield lockstep


class _OneOf:
    """The weights of the one module among several that was called last."""

    def __init__(
        self, read: Read, lockstep: Lockstep, before: _OneOf | None = None,
        skips: Callable[[str, Any, Any], bool] = lambda *_: False,
    ) -> None:
        """before: what is done with when one of these is called. skips: as in `streamed`."""
        self.read, self.lockstep, self.before, self.skips = read, lockstep, before, skips
        self._path: str | None = None
        self._held: Held = []

    def enter(self, path: str, called: nn.Module, args: Any, kwargs: Any) -> None:
        self.lockstep.pause()
        if self._path == path or self.skips(path, args, kwargs):
            return
        self.clear()
        if self.before is not None:
            self.before.clear()
        shared: dict[int, nn.Parameter] = {}
        for name, module in called.named_modules(prefix=path):
            self._held += _load(module, name, self.read, shared)
        self._path = path
        give_back(self._held)
        passed("blocks")

    def clear(self) -> None:
        _restore(self._held)
        self._held, self._path = [], None


# What a tensor may be asked for without its elements.
_FACTS = {
    "device", "dtype", "grad", "is_cpu", "is_cuda", "is_leaf", "is_meta", "is_sparse", "layout", "ndim",
    "requires_grad", "shape", "dim", "element_size", "is_complex", "is_floating_point", "nelement", "numel", "size",
    "stride",
}  # fmt: skip


class _Absent(nn.Parameter):
    """Has the shape, dtype and device of a weight that is on disk, and no memory.

    What computes with it without a call of its layer (a head that uses the weight of the embedding) computes with the
    weight, which is read for that and not kept.
    """

    fetch: Callable[[], nn.Parameter]

    def __new__(cls, like: Tensor, fetch: Callable[[], nn.Parameter]) -> _Absent:
        # Not of the meta device: models ask their first parameter where to put what they make.
        data = torch.full((), torch.nan, dtype=like.dtype).expand(like.shape)
        made: _Absent = torch.Tensor._make_subclass(cls, data, False)
        made.fetch = fetch
        return made

    @classmethod
    def __torch_function__(
        cls, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # An attribute is asked for by the getter of its descriptor.
        name = func.__self__.__name__ if func.__name__ == "__get__" else func.__name__
        if name not in _FACTS:
            args, kwargs = tree_map_only(_Absent, lambda absent: absent.fetch(), (args, kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs or {})


def give_back(read: Held) -> None:
    """After weights were read: hand memory that is free now back to the system.

    The C library of Linux keeps what was freed below anything that is in use, as between the tensors of a block: it was
    a third of the memory of a pipeline out of core.
    """
    if sum(weight.numel() * weight.element_size() for _, _, weight in read) < TRIMMED or sys.platform != "linux":
        return
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def rounds_together(runner: Runner, items: Sequence[Any]) -> int:
    """How often `feed_together` goes through the blocks."""
    return -(-len(runner.portions(items)) // TOGETHER)


def feed_together(runner: Runner, items: Sequence[Any], lockstep: Lockstep) -> None:
    """Calibration items through the model block by block: each block is read once for as many as `TOGETHER` portions.

    What a portion needs between two blocks is held for all of them at once.
    """
    portions = runner.portions(items)
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


def large_layers(model: nn.Module, family: ModelFamily, stored: Mapping[str, int] | None = None) -> list[str]:
    """Paths of the embeddings and linear layers outside of all blocks that hold `LARGE` bytes or more.

    stored: bytes of an element of a parameter, where it is not what the skeleton says.
    """
    width = stored or {}
    blocks = block_paths(model, family)
    inside = {id(module) for path in blocks for module in model.get_submodule(path).modules()}
    return [
        path for path, module in model.named_modules()
        if isinstance(module, nn.Embedding | nn.Linear) and id(module) not in inside
        and sum(p.numel() * width.get(f"{path}.{n}", p.element_size()) for n, p in module.named_parameters()) >= LARGE
    ]  # fmt: skip


def _load(module: nn.Module, path: str, read: Read, shared: dict[int, nn.Parameter]) -> Held:
    """Put weights into one module; what was there before. Tied parameters stay one tensor."""
    before = []
    for name, parameter in list(module.named_parameters(recurse=False)):
        if not parameter.is_meta and not isinstance(parameter, _Absent):
            continue
        if id(parameter) not in shared:
            shared[id(parameter)] = _fetched(read, f"{path}.{name}" if path else name)
        before.append((module, name, parameter))
        module._parameters[name] = shared[id(parameter)]
    return before


def _leave_out(module: nn.Module, path: str, read: Read) -> Held:
    """Say of a layer's weights only what they are; what was there before."""
    before = [(module, name, p) for name, p in module.named_parameters(recurse=False) if p.is_meta]
    for _, name, parameter in before:
        module._parameters[name] = _Absent(parameter, partial(_fetched, read, f"{path}.{name}"))
    return before


def _fetched(read: Read, name: str) -> nn.Parameter:
    with torch.no_grad():
        return nn.Parameter(read(name), requires_grad=False)


def _restore(before: Held) -> None:
    for module, name, parameter in before:
        module._parameters[name] = parameter
