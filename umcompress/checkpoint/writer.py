"""Write safetensors files a tensor at a time. The same tensors always give the same bytes.

Tensors lie in the order of their names; tensors whose size would misalign the next one come last, wider elements
first, so that every tensor is aligned.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from umcompress.checkpoint.links import refer, whole_files
from umcompress.checkpoint.parts import FileRange, PartialTensor, joined, pieces, whole
from umcompress.checkpoint.read_ahead import read_ahead
from umcompress.documents.atomic import atomic_file
from umcompress.errors import CheckError

NAMES: dict[torch.dtype, str] = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
DEFAULT_SHARD_BYTES = 5_000_000_000
ALIGNMENT = 64


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor to write; `make` is called when it is written, and the result is not kept.

    stored: a range of a file that holds exactly these bytes. pieces: the tensor in pieces along the first axis, for
    tensors that need not be in memory as a whole; parts: any part of it.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]
    pieces: Callable[[], Iterator[Tensor]] | None = None
    stored: FileRange | None = None
    parts: PartialTensor | None = None

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize * prod(self.shape)


def in_memory(tensor: Tensor) -> TensorToWrite:
    """A tensor that is in memory already."""
    return TensorToWrite(tensor.dtype, tuple(tensor.shape), lambda: tensor)


def in_parts(parts: PartialTensor) -> TensorToWrite:
    """A tensor that is made a few rows at a time, or copied from where it lies."""
    stored = parts.stored(whole(parts.shape))
    return TensorToWrite(parts.dtype, parts.shape, lambda: joined(pieces(parts)), lambda: pieces(parts), stored, parts)


def write_file(
    file: Path, tensors: Mapping[str, TensorToWrite], metadata: Mapping[str, str] | None = None, sync: bool = True
) -> None:
    """Write one safetensors file. CheckError when a tensor turns out otherwise than announced.

    The file is replaced, never written over: tensors mapped from the old one stay valid. sync: wait until it has
    reached the disk; without, the system flushes it in its own time, as after `cp`.
    """
    order = sorted(tensors, key=lambda name: _place(name, tensors[name]))
    header: dict[str, object] = {"__metadata__": dict(sorted({"format": "pt", **(metadata or {})}.items()))}
    offset = 0
    for name in order:
        source = tensors[name]
        ends = [offset, offset + source.bytes]
        header[name] = {"dtype": NAMES[source.dtype], "shape": list(source.shape), "data_offsets": ends}
        offset = ends[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    # Data starts on a multiple of 64 bytes, so that most tensors can be used straight from a memory map.
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    with atomic_file(file) as work, work.open("wb", buffering=0) as stream:
        _write(stream, memoryview(struct.pack("<Q", len(text)) + text))
        # While some is written, what follows is read and cut already, of the next tensors as well.
        for name, part in read_ahead(_made_ahead(order, tensors)):
            if part is not None:
                _write(stream, part)
            elif not ((stored := _as_it_lies(tensors[name])) and _copy(stored, stream)):
                for own in _raw(name, tensors[name]):
                    _write(stream, own)
        if sync:
            os.fsync(stream.fileno())


def _made_ahead(
    order: Sequence[str], tensors: Mapping[str, TensorToWrite]
) -> Iterator[tuple[str, memoryview | None]]:
    """The bytes of tensors that come in pieces; None for what is copied, or made as a whole when it is written."""
    for name in order:
        source = tensors[name]
        if source.pieces is None or _as_it_lies(source) is not None:
            yield name, None
        else:
            for part in _raw(name, source):
                yield name, part


def _as_it_lies(source: TensorToWrite) -> FileRange | None:
    """Where a file holds just these bytes."""
    return source.stored if source.stored is not None and source.stored.bytes == source.bytes else None


def _write(stream: FileIO, data: memoryview) -> None:
    while data.nbytes:
        data = data[stream.write(data) :]


def _copy(stored: FileRange, stream: FileIO) -> bool:
    """Copy bytes from file to file in the kernel; returns whether that worked."""
    if not hasattr(os, "copy_file_range"):
        return False
    start = stream.tell()
    with stored.file.open("rb", buffering=0) as old:
        done = 0
        while done < stored.bytes:
            try:
                count = os.copy_file_range(old.fileno(), stream.fileno(), stored.bytes - done, stored.offset + done)
            except OSError:
                count = 0
            if count == 0:
                stream.seek(start)
                stream.truncate()
                return False
            done += count
    return True


def _place(name: str, source: TensorToWrite) -> tuple[bool, int, str]:
    return source.bytes % ALIGNMENT != 0, -source.dtype.itemsize, name


def _raw(name: str, source: TensorToWrite) -> Iterator[memoryview]:
    """The bytes of a tensor, piece by piece. CheckError when they are not those of the announced tensor."""
    rows, shape = 0, source.shape
    for tensor in source.pieces() if source.pieces is not None else (source.make(),):
        whole = tuple(tensor.shape) == shape
        if tensor.dtype != source.dtype or not (whole or tuple(tensor.shape[1:]) == shape[1:]):
            found = f"{tensor.dtype} {tuple(tensor.shape)}, announced as {source.dtype} {shape}"
            raise CheckError(f"write the tensor {name}", found)
        rows += tensor.shape[0] if shape else 1
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
    if rows != (shape[0] if shape else 1):
        raise CheckError(f"write the tensor {name}", f"{rows} rows, announced as {shape}")


def write_shards(
    folder: Path,
    tensors: Mapping[str, TensorToWrite],
    file: str = "model.safetensors",
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    sync: bool = False,
    links: list[str] | None = None,
) -> list[Path]:
    """Write `file`, or numbered shards and an index if it would grow too large. Returns the weight files.

    links: files that lie somewhere as they are to be written are taken by reference; how is added, one entry a file.
    """
    kept = whole_files(tensors) if links is not None else {}
    carried = {name: old for old, names in kept.items() for name in names}
    rest = {name: tensor for name, tensor in tensors.items() if name not in carried}
    shards = [*kept.values(), *(_split(rest, max_shard_bytes) if rest or not kept else ())]
    stem = file.removesuffix(".safetensors")
    files = [folder / f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = [folder / file]
    for path, names in zip(files, shards, strict=True):
        old = carried.get(names[0]) if names else None
        how = refer(old, path) if old is not None else None
        if how is None:
            write_file(path, {name: tensors[name] for name in names}, sync=sync)
        elif links is not None:
            links.append(how)
    if len(shards) == 1:
        return files
    weight_map = {name: path.name for path, names in zip(files, shards, strict=True) for name in names}
    total = sum(source.bytes for source in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / f"{file}.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return files


def _split(tensors: Mapping[str, TensorToWrite], limit: int) -> Sequence[Sequence[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name in sorted(tensors):
        if shards[-1] and size + tensors[name].bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensors[name].bytes
    return shards
