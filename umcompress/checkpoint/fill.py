"""Fill a skeleton from weight files, strictly; and the other way round, what to write for a model.

`files` maps a weight file to {name on disk: name in the module}. Tied parameters are stored once.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn

from umcompress.checkpoint.index import Checkpoint, open_folder, shards_of
from umcompress.checkpoint.writer import ALIGNMENT, Source, held
from umcompress.errors import ModelError

WeightFiles = Mapping[str, Mapping[str, str]]


def tied_names(model: nn.Module) -> dict[str, str]:
    """Each further name of a parameter that has several -> its first one."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            tied[name] = first[id(parameter)]
    return tied


def sources(model: nn.Module, files: WeightFiles) -> dict[str, dict[str, Source]]:
    """What to write: file -> name on disk -> tensor."""
    state, tied = model.state_dict(), tied_names(model)
    return {
        file: {disk: held(state[name]) for disk, name in names.items() if name not in tied}
        for file, names in files.items()
    }


def file_problems(model: nn.Module, folder: Path, files: WeightFiles) -> list[str]:
    """What is missing, unexpected or wrongly shaped, by the files' headers. ModelError if one is damaged."""
    tied, problems = tied_names(model), []
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
    for file, names in files.items():
        wanted = {disk: shapes[name] for disk, name in names.items() if name not in tied}
        if shards_of(folder, file)[0].is_file():
            problems += _problems(file, wanted, open_folder(folder, file))
        else:
            problems.append(f"no {file}")
    return problems


def fill(
    model: nn.Module,
    folder: Path,
    files: WeightFiles,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Give a skeleton of any structure its tensors; floating ones are cast to `dtype` if one is given.

    Raises ModelError that lists every missing, unexpected or wrongly shaped tensor.
    """
    tied, problems = tied_names(model), []
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
    with ExitStack() as stack:
        stored = {file: stack.enter_context(open_folder(folder, file)) for file in files}
        for file, names in files.items():
            wanted = {disk: shapes[name] for disk, name in names.items() if name not in tied}
            problems += _problems(file, wanted, stored[file])
        if problems:
            more = f"\n    and {len(problems) - 40} more" if len(problems) > 40 else ""
            raise ModelError(
                f"load the weights of the model in {folder}",
                "\n    ".join(problems[:40]) + more,
                "get the folder again, or check that its configuration belongs to these weights",
            )
        found: dict[str, Tensor] = {}
        for file, names in files.items():
            for disk, name in names.items():
                if name not in tied:
                    found[name] = _cast(stored[file].read(disk), dtype, device)
    _assign(model, found, tied)


def _problems(file: str, wanted: Mapping[str, tuple[int, ...]], stored: Checkpoint) -> list[str]:
    there = stored.entries
    problems = [f"{file}: missing {name}" for name in sorted(wanted.keys() - there.keys())]
    problems += [f"{file}: unexpected {name}" for name in sorted(there.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & there.keys()):
        if there[name].shape != wanted[name]:
            problems.append(f"{file}: {name} is {list(there[name].shape)}, expected {list(wanted[name])}")
    return problems


def _cast(tensor: Tensor, dtype: torch.dtype | None, device: torch.device | str) -> Tensor:
    return aligned(
        tensor.to(device, dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype)
    )


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, copied if it lies where torch would never have allocated it.

    Matrix kernels sum in an order that depends on alignment: without this a model read from a memory map may
    differ in the last bits from the same model in memory.
    """
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def _assign(model: nn.Module, found: dict[str, Tensor], tied: Mapping[str, str]) -> None:
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.load_state_dict(found | {name: found[first] for name, first in tied.items()}, assign=True)
    for name, first in tied.items():
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, model.get_parameter(first))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained[name])
