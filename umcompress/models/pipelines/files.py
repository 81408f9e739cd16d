"""Weight files of a pipeline: those of its parts, each in the folder of the part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from umcompress.checkpoint import disk as disk_files
from umcompress.checkpoint import fill as filling
from umcompress.checkpoint.disk import DiskTensors, OpenFiles
from umcompress.checkpoint.layout import tied_names
from umcompress.checkpoint.writer import TensorToWrite
from umcompress.models.hf.load import weights
from umcompress.models.hf.names import WEIGHTS as TRANSFORMERS_WEIGHTS
from umcompress.models.pipelines.index import Part
from umcompress.models.pipelines.parts import WEIGHTS, PipelineModel, kept_float32


def _file(part: Part) -> str:
    return TRANSFORMERS_WEIGHTS if part.library == "transformers" else WEIGHTS


def names_on_disk(model: PipelineModel) -> dict[str, dict[str, str]]:
    """Weight file -> name on disk -> name in the pipeline."""
    found = {}
    for part in model.index.parts:
        module = model.of(part)
        theirs = weights.names_on_disk(module) if part.library == "transformers" else _own_names(module)
        found[f"{part.name}/{_file(part)}"] = {disk: f"{part.name}.{name}" for disk, name in theirs.items()}
    return found


def _own_names(module: nn.Module) -> dict[str, str]:
    return {name: name for name in module.state_dict(keep_vars=True)}


def fill(model: PipelineModel, folder: Path, dtype: torch.dtype, device: str) -> None:
    """Give every part its weights. ModelError that lists all of a part that does not fit."""
    for part in model.index.parts:
        module, own = model.of(part), folder / part.name
        if part.library == "transformers":
            weights.fill(module, own, dtype, device)
            continue
        filling.fill(module, own, {WEIGHTS: _own_names(module)}, dtype, device)
        for name in kept_float32(module, dtype):
            path, _, leaf = name.rpartition(".")
            tensor = getattr(module.get_submodule(path), leaf)
            tensor.data = tensor.data.float()
        module.to(device)


def problems(model: PipelineModel, folder: Path) -> list[str]:
    """What is missing, unexpected or wrongly shaped, by the headers of the files; the part's name first."""
    listed: list[str] = []
    for part in model.index.parts:
        module, own = model.of(part), folder / part.name
        if part.library == "transformers":
            found = weights.problems(module, own)
        else:
            found = filling.file_problems(module, own, {WEIGHTS: _own_names(module)})
        listed += [f"{part.name}/{problem}" for problem in found]
    return listed


def values_of(part: Part, values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Those of `values` that are of one part, by their names in it."""
    if values is None:
        return None
    start = f"{part.name}."
    return {name.removeprefix(start): value for name, value in values.items() if name.startswith(start)}


def sources(
    model: PipelineModel, values: Mapping[str, TensorToWrite] | None = None
) -> dict[str, dict[str, TensorToWrite]]:
    """What to write: file -> name on disk -> tensor."""
    return {
        f"{part.name}/{_file(part)}": sources_of(part, model.of(part), values_of(part, values))
        for part in model.index.parts
    }


def sources_of(part: Part, module: Any, values: Mapping[str, TensorToWrite] | None) -> dict[str, TensorToWrite]:
    """What to write of one part: name on disk -> tensor."""
    if part.library == "transformers":
        return weights.sources(module, values)
    return filling.sources(module, {WEIGHTS: _own_names(module)}, values)[WEIGHTS]


class _AllFiles(OpenFiles):
    """The open files of several parts, closed together."""

    def __init__(self, parts: list[DiskTensors]) -> None:
        super().__init__()
        self.parts = parts

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:
            for part in self.parts:
                stack.callback(part.__exit__)


def open_disk(model: PipelineModel, folder: Path) -> DiskTensors:
    """Where the tensors of all parts lie."""
    opened = dict(_opened(model, folder))
    places = {f"{name}.{tensor}": place for name, disk in opened.items() for tensor, place in disk.places.items()}
    return DiskTensors(disk_files.with_tied(places, tied_names(model)), _AllFiles(list(opened.values())))


def _opened(model: PipelineModel, folder: Path) -> Iterator[tuple[str, DiskTensors]]:
    for part in model.index.parts:
        module, own = model.of(part), folder / part.name
        if part.library == "transformers":
            yield part.name, weights.open_disk(module, own)
        else:
            yield part.name, disk_files.open_disk(module, own, {WEIGHTS: _own_names(module)})
