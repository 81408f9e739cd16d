"""Tensors of weight files read by position, whole or some rows of them, and never mapped into memory.

A mapped file counts as resident for as long as its pages are warm; what is read here is gone with the tensor.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from umcompress.checkpoint.fill import Part, Target, WeightFiles, target_name, tied_names
from umcompress.checkpoint.index import Entry, open_folder, shards_of
from umcompress.checkpoint.writer import NAMES, Stored
from umcompress.errors import ModelError

DTYPES = {name: dtype for dtype, name in NAMES.items()}


class Disk:
    """The tensors of a model, by their names in the module. A context manager.

    `places`: name in the module -> entry, or for a tensor that the module stacks, one entry a part.
    """

    def __init__(self, places: Mapping[str, Entry | tuple[Entry, ...]]) -> None:
        self.places = dict(places)
        self._open: dict[Path, BinaryIO] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.clear()
        self._stack.close()

    def shape(self, name: str) -> tuple[int, ...]:
        place = self.places[name]
        return (len(place), *place[0].shape) if isinstance(place, tuple) else place.shape

    def dtype(self, name: str) -> torch.dtype:
        place = self.places[name]
        return DTYPES[(place[0] if isinstance(place, tuple) else place).dtype]

    def stored(self, name: str, dtype: torch.dtype) -> Stored | None:
        """Where the bytes of a tensor of that dtype lie in one piece."""
        place = self.places[name]
        if isinstance(place, tuple) or DTYPES[place.dtype] != dtype:
            return None
        return Stored(place.file, place.offset, place.bytes)

    def read(self, name: str) -> Tensor:
        """One whole tensor, in memory of its own."""
        place = self.places[name]
        if isinstance(place, tuple):
            return self.rows(name, 0, len(place))
        return self._read(place, 0, place.bytes).reshape(place.shape)

    def rows(self, name: str, low: int, high: int) -> Tensor:
        """Entries [low, high) of the first axis."""
        place = self.places[name]
        if isinstance(place, tuple):
            return torch.stack([self._read(part, 0, part.bytes).reshape(part.shape) for part in place[low:high]])
        each = place.bytes // place.shape[0] if place.shape[0] else 0
        return self._read(place, low * each, (high - low) * each).reshape(high - low, *place.shape[1:])

    def _read(self, entry: Entry, start: int, count: int) -> Tensor:
        if entry.file not in self._open:
            self._open[entry.file] = self._stack.enter_context(entry.file.open("rb", buffering=0))
        data = torch.empty(count, dtype=torch.uint8)
        view, done = data.numpy().data, 0
        while done < count:
            got = os.preadv(self._open[entry.file].fileno(), [view[done:]], entry.offset + start + done)
            if got == 0:
                raise ModelError(f"read the tensor {entry.name} of {entry.file}", "the file was cut short",
                                 "get the file again")
            done += got
        return data.view(DTYPES[entry.dtype])


def open_disk(model: nn.Module, folder: Path, files: WeightFiles) -> Disk:
    """Where the tensors of `model` lie in the weight files of `folder`; a tied one is found by each name."""
    places: dict[str, Entry | tuple[Entry, ...]] = {}
    parts: dict[str, dict[int, Entry]] = {}
    tied = tied_names(model)
    for file, names in files.items():
        if not shards_of(folder, file)[0].is_file():
            raise ModelError(f"the weights of the model in {folder}", f"no {file}", "get the folder again")
        stored = open_folder(folder, file)
        wanted = list(_stored_once(names, tied))
        if absent := [disk for disk, _ in wanted if disk not in stored.entries]:
            raise ModelError(
                f"read the weights in {folder} a tensor at a time",
                f"{len(absent)} tensors are not there as the model has them, such as {absent[0]}: they are joined "
                "from several when it is loaded, or missing",
                "leave --out-of-core out: the model is then loaded as a whole, and what is missing is listed",
            )
        for disk, target in wanted:
            entry = stored.entry(disk)
            if isinstance(target, Part):
                parts.setdefault(target.name, {})[target.index] = entry
            else:
                places[target] = entry
    for name, found in parts.items():
        places[name] = tuple(found[index] for index in sorted(found))
    return Disk(places | {name: places[first] for name, first in tied.items() if first in places})


def _stored_once(names: Mapping[str, Target], tied: Mapping[str, str]) -> Iterable[tuple[str, Target]]:
    return ((disk, target) for disk, target in names.items() if target_name(target) not in tied)
