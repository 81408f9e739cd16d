"""Read the headers of safetensors files, and their tensors lazily."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umcompress.documents.files import parse_json, read_json, regular, within
from umcompress.errors import ModelError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

_MAX_HEADER = 100_000_000
_POINTER = b"version https://git-lfs"
# Bits of an element, of every type that the format knows.
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One tensor on disk: where it lies (`offset` in bytes from the start of the file) and what it is."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    offset: int = 0


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors of one file. ModelError when it is missing, cut short, or no safetensors file."""
    asked = f"read the tensors of {file}"
    try:
        size = regular(file).stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            if start == _POINTER[:8]:
                raise ModelError(asked, "it is a pointer of git-lfs, not the file itself", "run: git lfs pull")
            length = struct.unpack("<Q", start)[0]
            if not 0 < length <= min(_MAX_HEADER, size - 8):
                raise ModelError(asked, "its first bytes are not a safetensors header", "get the file again")
            header = parse_json(stream.read(length))
    except FileNotFoundError as error:
        do = "get it again: the index of the weight files names it" if "-of-" in file.name else "check the path"
        raise ModelError(asked, error.strerror or str(error), do) from None
    except OSError as error:
        raise ModelError(asked, error.strerror or str(error), "check the path") from None
    except (struct.error, ValueError):
        raise ModelError(asked, "its header is not readable", "get the file again") from None
    try:
        header.pop("__metadata__", None)
        entries = {name: _entry(name, file, info, 8 + length) for name, info in header.items()}
    except (KeyError, TypeError, IndexError, AttributeError, ValueError):
        raise ModelError(asked, "its header describes no tensors", "get the file again") from None
    end = _filled(entries.values(), asked, 8 + length)
    if end != size:
        found = f"{size} bytes, its header says {end}"
        raise ModelError(asked, found, "the file was cut short or damaged: get it again")
    return entries


def _entry(name: str, file: Path, info: Mapping[str, Any], data: int) -> Entry:
    """ValueError where what is said of a tensor is of another form."""
    (start, end), shape, dtype = info["data_offsets"], info["shape"], info["dtype"]
    if not isinstance(shape, list) or not isinstance(dtype, str):
        raise ValueError(name)
    if any(type(number) is not int or number < 0 for number in (start, end, *shape)):
        raise ValueError(name)
    return Entry(name, file, dtype, tuple(shape), end - start, data + start)


def _filled(entries: Iterable[Entry], asked: str, start: int) -> int:
    """Where the last tensor ends. They lie one after the other from `start` on, each as large as its shape says.

    Were this not so, bytes of the header or of another tensor would be taken for weights.
    """
    place = start
    for entry in sorted(entries, key=lambda entry: (entry.offset, entry.bytes)):
        if entry.dtype not in _BITS:
            found = f"elements of type {entry.dtype!r} in {entry.name}"
            raise ModelError(asked, found, f"safetensors has {', '.join(_BITS)}")
        if entry.offset != place:
            what = "overlaps with another tensor" if entry.offset < place else "lies after a gap"
            raise ModelError(asked, f"{entry.name} {what}, by its header", "the file is damaged: get it again")
        if entry.bytes * 8 != prod(entry.shape) * _BITS[entry.dtype]:
            found = f"{entry.name} has {entry.bytes} bytes, {list(entry.shape)} of {entry.dtype} are others"
            raise ModelError(asked, found, "the file is damaged: get it again")
        place += entry.bytes
    return place


class StoredTensors:
    """Tensors of several files, read one at a time from memory maps. A context manager."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self.entries = dict(entries)
        self._open: dict[Path, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> StoredTensors:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.clear()
        self._stack.close()

    def read(self, name: str) -> Tensor:
        """One whole tensor. ModelError with the nearest name when there is none."""
        from safetensors import SafetensorError, safe_open

        entry = self.entry(name)
        try:
            if entry.file not in self._open:
                self._open[entry.file] = self._stack.enter_context(safe_open(entry.file, framework="pt"))
            tensor: Tensor = self._open[entry.file].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"read the tensor {name} of {entry.file}", str(error), "get the file again"
            ) from None
        return tensor

    def entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise ModelError(f"read the tensor {name}", "no such tensor", did_you_mean(name, self.entries))
        return self.entries[name]


def open_files(files: Iterable[Path]) -> StoredTensors:
    """The tensors of these files. ModelError when two hold the same name."""
    entries: dict[str, Entry] = {}
    for file in files:
        for name, entry in read_header(file).items():
            if name in entries:
                raise ModelError(
                    f"read the tensors of {file.parent}",
                    f"{name} in {entries[name].file.name} and {file.name}", "remove the file that is of another model",
                )
            entries[name] = entry
    return StoredTensors(entries)


def shards_of(folder: Path, file: str = "model.safetensors") -> tuple[Path, ...]:
    """The files that make up `file`: itself, or the shards that its index lists."""
    single, index = folder / file, folder / f"{file}.index.json"
    if single.is_file() or not index.is_file():
        return (single,)
    return tuple(sorted(set(_weight_map(index).values())))


def _weight_map(index: Path) -> dict[str, Path]:
    """Tensor -> file, as an index of weight files says.  ModelError."""
    try:
        listed = read_json(index)["weight_map"]
        if not isinstance(listed, dict) or not listed:
            raise ValueError("no weight_map with tensors in it")
        return {name: within(index.parent, file) for name, file in listed.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = "it has no weight_map" if isinstance(error, KeyError | TypeError) else str(error)
        raise ModelError(f"read {index}", f"it is no index of weight files: {why}", "get the file again") from None


def open_folder(folder: Path, file: str = "model.safetensors") -> StoredTensors:
    """The tensors of a folder's weights, sharded or not. ModelError if a shard lacks what it should hold."""
    checkpoint = open_files(shards_of(folder, file))
    index = folder / f"{file}.index.json"
    if not (folder / file).is_file() and index.is_file():
        listed = _weight_map(index)
        absent = [n for n, shard in listed.items() if checkpoint.entries.get(n, _NOWHERE).file != shard]
        if absent:
            raise ModelError(
                f"read the tensors of {folder}", f"not where the index says: {', '.join(absent[:5])}",
                "get the files and their index again",
            )
    return checkpoint


_NOWHERE = Entry("", Path(), "", (), 0)
