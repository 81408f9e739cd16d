"""Which tensors safetensors files hold, read from their headers alone, and a lazy reader for them."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umcompress.errors import ModelError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

_MAX_HEADER = 100_000_000
_POINTER = b"version https://git-lfs"


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
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            if start == _POINTER[:8]:
                raise ModelError(asked, "it is a pointer of git-lfs, not the file itself", "run: git lfs pull")
            length = struct.unpack("<Q", start)[0]
            if not 0 < length <= min(_MAX_HEADER, size - 8):
                raise ModelError(asked, "its first bytes are not a safetensors header", "get the file again")
            header = json.loads(stream.read(length))
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
        end = max((info["data_offsets"][1] for info in header.values()), default=0)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError):
        raise ModelError(asked, "its header describes no tensors", "get the file again") from None
    if 8 + length + end != size:
        found = f"{size} bytes, its header says {8 + length + end}"
        raise ModelError(asked, found, "the file was cut short or damaged: get it again")
    return entries


def _entry(name: str, file: Path, info: Mapping[str, Any], data: int) -> Entry:
    start, end = info["data_offsets"]
    shape = tuple(int(n) for n in info["shape"])
    return Entry(name, file, str(info["dtype"]), shape, end - start, data + start)


class Checkpoint:
    """Tensors of several files as one, read one at a time from a memory map. A context manager."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self.entries = dict(entries)
        self._open: dict[Path, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Checkpoint:
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


def open_files(files: Iterable[Path]) -> Checkpoint:
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
    return Checkpoint(entries)


def shards_of(folder: Path, file: str = "model.safetensors") -> tuple[Path, ...]:
    """The files that make up `file`: itself, or the shards that its index lists."""
    single, index = folder / file, folder / f"{file}.index.json"
    if single.is_file() or not index.is_file():
        return (single,)
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
        return tuple(folder / str(name) for name in sorted(names))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"read {index}", "it is no index of weight files", "get the file again") from None


def open_folder(folder: Path, file: str = "model.safetensors") -> Checkpoint:
    """The tensors of a folder's weights, sharded or not. ModelError if a shard lacks what it should hold."""
    checkpoint = open_files(shards_of(folder, file))
    index = folder / f"{file}.index.json"
    if not (folder / file).is_file() and index.is_file():
        listed = json.loads(index.read_text())["weight_map"]
        absent = [n for n, shard in listed.items() if checkpoint.entries.get(n, _NOWHERE).file.name != shard]
        if absent:
            raise ModelError(
                f"read the tensors of {folder}", f"not where the index says: {', '.join(absent[:5])}",
                "get the files and their index again",
            )
    return checkpoint


_NOWHERE = Entry("", Path(), "", (), 0)
