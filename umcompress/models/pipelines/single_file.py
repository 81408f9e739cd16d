"""The transformer of a pipeline as one file with the names of its first release, for ComfyUI and its kin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from umcompress.checkpoint.writer import TensorToWrite
from umcompress.models.hf.names import CONFIG
from umcompress.models.pipelines.export import is_changed, plain_config
from umcompress.models.pipelines.files import sources_of, values_of
from umcompress.models.pipelines.first_names import Rows, first_names, known_classes
from umcompress.models.pipelines.parts import PipelineModel
from umcompress.models.pipelines.stacks import PAINTS
from umcompress.models.plain_folder import Plain
from umcompress.models.save import side_files


def single_files(
    model: PipelineModel, source: Path, values: Mapping[str, TensorToWrite] | None = None
) -> Plain | str:
    """A file for each transformer, and beside it the configuration for diffusers; or why there is none."""
    weights: dict[str, Mapping[str, TensorToWrite]] = {}
    texts: dict[str, str] = {}
    told: list[str] = []
    for part in model.index.parts:
        if part.library != "diffusers" or not part.name.startswith(PAINTS):
            continue
        own = values_of(part, values)
        config, why = plain_config(part, model, source, own)
        if why:
            return f"{part.name} would be built otherwise by its readers: {'; '.join(why)}"
        tensors = sources_of(part, model.of(part), own)
        named = first_names(part.kind, {name: tensor.shape for name, tensor in tensors.items()})
        if isinstance(named, str):
            return named
        file = f"{part.name}.safetensors"
        weights[file] = {name: _of_rows(rows, tensors) for name, rows in named.items()}
        texts[f"{part.name}/{CONFIG}"] = config
        told.append(f"{part.kind}.from_single_file('{file}', config='.', subfolder='{part.name}') reads {file}")
    if not weights:
        return f"it has no transformer of diffusers; written are {', '.join(known_classes())}"
    others = [part.name for part in model.index.parts if f"{part.name}.safetensors" not in weights]
    if changed := [part.name for part in model.index.parts if part.name in others and is_changed(part, model, source)]:
        told.append(f"not in these files, though compressed as well: {', '.join(changed)}")
    return Plain(
        weights, texts, frozenset(side_files(source)), sharded=False, note="; ".join(told), loads_with="diffusers",
        opens_here=False,
    )  # fmt: skip


def _of_rows(rows: tuple[Rows, ...], tensors: Mapping[str, TensorToWrite]) -> TensorToWrite:
    """Rows of tensors one after the other; a tensor as it is, where it is one from end to end."""
    first = tensors[rows[0].name]
    if len(rows) == 1 and (rows[0].start, rows[0].stop) == (0, first.shape[0] if first.shape else 1):
        return first

    def make() -> Tensor:
        return torch.cat([tensors[part.name].make()[part.start : part.stop] for part in rows])

    kind = first.dtype
    for part in rows:
        kind = torch.promote_types(kind, tensors[part.name].dtype)
    return TensorToWrite(kind, (sum(part.stop - part.start for part in rows), *first.shape[1:]), make)
