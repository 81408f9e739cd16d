"""Run a skeleton whose weights lie on disk: one block at a time is in memory, loaded when it is its turn.

What lies outside of the blocks (embeddings, final norm, head) is held for the whole time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from umcompress.graph.model_graph import ModelFamily

Read = Callable[[str], Tensor]


@contextmanager
def streamed(model: nn.Module, family: ModelFamily, read: Read) -> Iterator[None]:
    """Give the skeleton `model` its weights while it runs; afterwards it is a skeleton again.

    read: name of a parameter in the module -> its tensor, of the dtype to compute in. A block is read anew
    each time that it is called: feed it few, large batches.
    """
    blocks = block_paths(model, family)
    inside = {id(module) for path in blocks for module in model.get_submodule(path).modules()}
    hooks = []
    outside: list[tuple[nn.Module, str, nn.Parameter]] = []
    shared: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        if id(module) not in inside:
            outside += _load(module, path, read, shared)
    for path in blocks:
        held: list[tuple[nn.Module, str, nn.Parameter]] = []
        block = model.get_submodule(path)
        hooks.append(block.register_forward_pre_hook(partial(_enter, path, read, held)))
        hooks.append(block.register_forward_hook(partial(_leave, held), always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        _restore(outside)


def block_paths(model: nn.Module, family: ModelFamily) -> list[str]:
    """Paths of all blocks of all stacks."""
    paths = []
    for path in family.stacks(model).values():
        modules = model.get_submodule(path)
        assert isinstance(modules, nn.ModuleList)
        paths += [f"{path}.{index}" for index in range(len(modules))]
    return paths


def _enter(
    path: str, read: Read, held: list[tuple[nn.Module, str, nn.Parameter]], block: nn.Module, _: object
) -> None:
    shared: dict[int, nn.Parameter] = {}
    for name, module in block.named_modules(prefix=path):
        held += _load(module, name, read, shared)


def _leave(held: list[tuple[nn.Module, str, nn.Parameter]], *_: object) -> None:
    _restore(held)
    held.clear()


def _load(
    module: nn.Module, path: str, read: Read, shared: dict[int, nn.Parameter]
) -> list[tuple[nn.Module, str, nn.Parameter]]:
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


def _restore(before: list[tuple[nn.Module, str, nn.Parameter]]) -> None:
    for module, name, parameter in before:
        module._parameters[name] = parameter
