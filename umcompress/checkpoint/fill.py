"""Load weight files into a skeleton, strictly; and list the tensors to write for a model.

`files` maps a weight file to {name on disk: name in the module, or a part of a tensor that the module stacks}.
Tied parameters are stored once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn

from umcompress.checkpoint.index import StoredTensors, open_folder, shards_of
from umcompress.checkpoint.joins import entry_of
from umcompress.checkpoint.layout import Part, WeightFiles, target_name, tied_names
from umcompress.checkpoint.writer import ALIGNMENT, TensorToWrite, in_memory, in_parts
from umcompress.errors import ModelError


def name_mismatches(model: nn.Module, files: WeightFiles) -> list[str]:
    """Tensors of the model that are not written exactly once, and names that it does not have."""
    targets = [target for names in files.values() for target in names.values()]
    stacked = {target.name for target in targets if isinstance(target, Part)}
    written = Counter((t, 0) if isinstance(t, str) else (t.name, t.index) for t in targets)
    wanted = Counter(
        (name, index)
        for name, tensor in model.state_dict(keep_vars=True).items()
        for index in range(len(tensor) if name in stacked else 1)
    )
    return sorted({name for name, _ in (written - wanted) | (wanted - written)})


def sources(
    model: nn.Module, files: WeightFiles, values: Mapping[str, TensorToWrite] | None = None
) -> dict[str, dict[str, TensorToWrite]]:
    """What to write: file -> name on disk -> tensor, from `values` where given, else from the model itself."""
    tied = tied_names(model)
    given = values if values is not None else {name: in_memory(tensor) for name, tensor in model.state_dict().items()}
    return {
        file: {
            disk: given[target] if isinstance(target, str) else part_of(given[target.name], target.index)
            for disk, target in names.items() if target_name(target) not in tied
        }
        for file, names in files.items()
    }  # fmt: skip


def part_of(source: TensorToWrite, index: int) -> TensorToWrite:
    """Entry `index` on the first axis of a tensor to write."""
    if source.parts is not None:
        return in_parts(entry_of(source.parts, index))
    return TensorToWrite(source.dtype, source.shape[1:], lambda: source.make()[index])


def file_problems(model: nn.Module, folder: Path, files: WeightFiles) -> list[str]:
    """What is missing, unexpected or wrongly shaped, by the files' headers. ModelError if one is damaged."""
    problems = []
    for file, wanted in _wanted(model, files).items():
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
    kept: Mapping[str, torch.dtype] | None = None,
) -> None:
    """Give a skeleton of any structure its tensors; floating ones are cast to `dtype` if one is given.

    `kept`: files whose tensors get a dtype of their own. Raises ModelError that lists every missing, unexpected
    or wrongly shaped tensor.
    """
    if problems := file_problems(model, folder, files):
        raise ModelError(
            f"load the weights of the model in {folder}", "\n    ".join(problems),
            "get the folder again, or check that its configuration belongs to these weights",
        )  # fmt: skip
    tied = tied_names(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for file, names in files.items():
            stored, wanted = stack.enter_context(open_folder(folder, file)), (kept or {}).get(file, dtype)
            for disk, target in names.items():
                if (name := target_name(target)) in tied:
                    continue
                tensor = _cast(stored.read(disk), wanted, device)
                if isinstance(target, str):
                    found[name] = tensor
                    continue
                if name not in found:
                    found[name] = tensor.new_empty(shapes[name])
                found[name][target.index] = tensor
    _assign(model, found, tied)


def _wanted(model: nn.Module, files: WeightFiles) -> dict[str, dict[str, tuple[int, ...]]]:
    """File -> name on disk -> shape that it must have there."""
    tied = tied_names(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
    return {
        file: {
            disk: shapes[target] if isinstance(target, str) else shapes[target.name][1:]
            for disk, target in names.items() if target_name(target) not in tied
        }
        for file, names in files.items()
    }  # fmt: skip


def _problems(file: str, wanted: Mapping[str, tuple[int, ...]], stored: StoredTensors) -> list[str]:
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
    """The tensor, copied if its memory is less aligned than torch allocates.

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
