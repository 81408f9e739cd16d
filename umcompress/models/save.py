"""A compressed model as a folder: its own weights, files of the model it came from, the plans to replay.

Loading builds the skeleton of the original configuration, replays the structure of the plans on it, and fills
it from the folder's weights. Nothing of the original weights is needed.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from pydantic import ValidationError
from torch import nn

from umcompress.checkpoint.disk import CustomWeightLayout
from umcompress.checkpoint.fill import name_mismatches, sources
from umcompress.checkpoint.layout import WeightFiles
from umcompress.checkpoint.writer import DEFAULT_SHARD_BYTES, TensorToWrite, write_shards
from umcompress.documents.atomic import atomic_folder
from umcompress.documents.base import explain
from umcompress.documents.file_names import RECORD
from umcompress.documents.plan import CompressionRecord
from umcompress.errors import CheckError, ModelError
from umcompress.graph.model_graph import ModelFamily
from umcompress.models.parts_of_folder import files_of, tokenizer_beside
from umcompress.models.plain_folder import Plain
from umcompress.rewrite.apply import shapes_only

# In a folder of the hub beside the safetensors: the same weights again, for other programs.
WEIGHTS = frozenset({
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".gguf", ".ggml", ".onnx", ".onnx_data",
    ".tflite", ".mlmodel", ".npz", ".nemo", ".pkl",
})  # fmt: skip
INDEXES = (".safetensors.index.json", ".bin.index.json", ".h5.index.json", ".msgpack.index.json")


class StoredFamily(ModelFamily, Protocol):
    """What storing needs from a family on top of what tracing needs."""

    def skeleton(self, folder: Path) -> nn.Module:
        """The original model from the configuration in `folder`, parameters on meta, buffers real."""

    def weight_files(self, model: nn.Module) -> WeightFiles:
        """Weight file -> name on disk -> name in the module, for every entry of the state dict."""

    def fill(self, model: nn.Module, folder: Path, dtype: torch.dtype, device: str) -> None:
        """Fill a skeleton of any structure from the weight files of `folder`, strictly."""


@runtime_checkable
class KeepsNotes(Protocol):
    """A family whose skeletons follow from weights, not from the configuration alone."""

    def notes(self, folder: Path) -> Mapping[str, str]:
        """File -> content to keep beside the weights of a compressed model."""


def write_compressed(
    model: nn.Module,
    family: StoredFamily,
    folder: Path,
    record: CompressionRecord,
    source: Path | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    values: Mapping[str, TensorToWrite] | None = None,
    links: list[str] | None = None,
) -> list[Path]:
    """Write into an existing folder; returns the weight files. `source`: the folder of the original model.

    values: where the tensors of a skeleton come from; a live model has its own. links: as `write_shards`.
    Raises CheckError when the family does not say where some tensor goes.
    """
    files = family.weight_files(model)
    if odd := name_mismatches(model, files):
        raise CheckError("write every tensor of the model once", f"not so for {', '.join(odd[:5])}")
    if source is not None:
        _write(beside_compressed(model, family, source), folder)
    weights: list[Path] = []
    own = family if isinstance(family, CustomWeightLayout) else None
    for file, tensors in (own.sources(model, values) if own else sources(model, files, values)).items():
        weights += write_shards(folder, tensors, file, max_shard_bytes, links=links)
    (folder / RECORD).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return weights


def save_compressed(
    model: nn.Module,
    family: StoredFamily,
    folder: Path,
    record: CompressionRecord,
    source: Path | None = None,
    replace: bool = False,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write a compressed model as a folder that appears as a whole or not at all."""
    with atomic_folder(folder, replace, sync=False) as work:
        write_compressed(model, family, work, record, source, max_shard_bytes)


def save_plain(
    plain: Plain, folder: Path, source: Path, replace: bool = False, links: list[str] | None = None
) -> None:
    """Write a model that needs no plans; the folder appears as a whole or not at all. links: as `write_shards`."""
    with atomic_folder(folder, replace, sync=False) as work:
        _write(beside_plain(plain, source), work)
        for file, tensors in plain.weights.items():
            # What is read as one file stays one.
            limit, by_reference = (DEFAULT_SHARD_BYTES, links) if plain.sharded else (sys.maxsize, None)
            write_shards(work, tensors, file, limit, links=by_reference)


def load_compressed(
    folder: Path, family: StoredFamily, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> nn.Module:
    """The model of a folder that `save_compressed` wrote. ModelError when it is damaged or not one."""
    record = read_record(folder)
    model = family.skeleton(folder)
    shapes_only(model, family, record.plans)
    family.fill(model, folder, dtype, device)
    return model.eval()


def read_record(folder: Path) -> CompressionRecord:
    """`umcompress.json` of a folder."""
    asked = f"read {folder / RECORD}"
    try:
        return CompressionRecord.model_validate_json((folder / RECORD).read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(asked, error.strerror or str(error), "check the path") from None
    except (ValidationError, UnicodeDecodeError) as error:
        found = explain(error) if isinstance(error, ValidationError) else str(error)
        raise ModelError(asked, found, "the file was damaged or written by another version") from None


def is_compressed(folder: Path) -> bool:
    """Whether a folder holds a compressed model of ours."""
    return (folder / RECORD).is_file()


# The voices of an omni model, without which transformers does not load one. Copied, and not read here.
_NO_WEIGHTS = {"spk_dict.pt"}


class BesideWeights(NamedTuple):
    """What a folder holds beside its weights, by name: files that are copied, and texts in place of some of them."""

    files: Mapping[str, Path]
    texts: Mapping[str, str]


def beside_compressed(model: nn.Module, family: StoredFamily, source: Path) -> BesideWeights:
    """Of a model that is stored with its plans."""
    notes = family.notes(source) if isinstance(family, KeepsNotes) else {}
    texts = family.texts(model, source) if isinstance(family, CustomWeightLayout) else {}
    return BesideWeights(side_files(source), {**notes, **texts})


def beside_plain(plain: Plain, source: Path) -> BesideWeights:
    """Of a model that needs no plans."""
    return BesideWeights({n: path for n, path in side_files(source).items() if n not in plain.dropped}, plain.texts)


def _write(beside: BesideWeights, folder: Path) -> None:
    """Folders of parts are made."""
    for name in (*beside.files, *beside.texts):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for name, path in beside.files.items():
        shutil.copyfile(path, folder / name)
    for name, text in beside.texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def side_files(folder: Path) -> dict[str, Path]:
    """What a model folder holds beside weights, their index, our record and a model card, by name in the folder.

    Weights of other libraries are weights, too: next to a smaller model they would be those of the old one.
    """
    own = {RECORD, "README.md", ".gitattributes"}
    beside = {path.name: path for path in tokenizer_beside(folder)}
    return beside | {
        path.relative_to(folder).as_posix(): path for path in files_of(folder)
        if path.name not in own
        and (path.name in _NO_WEIGHTS or (path.suffix not in WEIGHTS and not path.name.endswith(INDEXES)))
    }  # fmt: skip
