"""Read tensors of weight files, whole or in part, by position and without memory maps.

Pages of a mapped file count as resident memory while they are cached; what is read here is freed with the tensor.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from umcompress.checkpoint.index import Entry, open_folder, shards_of
from umcompress.checkpoint.joins import stacked
from umcompress.checkpoint.layout import Part, Target, WeightFiles, target_name, tied_names
from umcompress.checkpoint.parts import (
    FileRange,
    PartialTensor,
    Pick,
    Picks,
    Region,
    cut_out,
    extent,
    sides,
    take_along,
    whole,
)
from umcompress.checkpoint.writer import NAMES, TensorToWrite
from umcompress.errors import ModelError

DTYPES = {name: dtype for dtype, name in NAMES.items()}
# Rows that lie apart are read alone where reading what is between them would be more than this many times as much.
_SPARSE = 4
# Bytes from which on memory to read into is asked for in large pages, where the system has them.
_LARGE_PAGES = 4 * 2**20


class OpenFiles:
    """Weight files, opened when they are first read. A context manager."""

    def __init__(self) -> None:
        self._open: dict[Path, BinaryIO] = {}
        self._stack = ExitStack()

    def __enter__(self) -> OpenFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.clear()
        self._stack.close()

    def read(self, entry: Entry, start: int, data: Tensor) -> None:
        """Bytes of a tensor from `start` on, into `data`."""
        if entry.file not in self._open:
            self._open[entry.file] = self._stack.enter_context(entry.file.open("rb", buffering=0))
        view, done = data.numpy().data, 0
        while done < len(data):
            got = os.preadv(self._open[entry.file].fileno(), [view[done:]], entry.offset + start + done)
            if got == 0:
                raise ModelError(f"read the tensor {entry.name} of {entry.file}", "the file was cut short",
                                 "get the file again")
            done += got


@dataclass(frozen=True, eq=False)
class FileTensor:
    """A tensor as it lies in a file."""

    entry: Entry
    files: OpenFiles

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape

    @property
    def dtype(self) -> torch.dtype:
        if (name := self.entry.dtype) not in DTYPES:
            entry = self.entry
            raise ModelError(f"read the tensor {entry.name} of {entry.file}", f"elements of type {name}",
                             f"known are {', '.join(DTYPES)}")
        return DTYPES[name]

    def part(self, region: Region) -> Tensor:
        start, shape = self._span(region)
        read = self._read(start, shape)
        for axis, span in enumerate(region):
            if len(span) != shape[axis]:
                read = read.narrow(axis, span.start, len(span))
        return read

    def cost(self, region: Region) -> int:
        return prod(self._span(region)[1]) * self.dtype.itemsize

    def stored(self, region: Region) -> FileRange | None:
        start, shape = self._span(region)
        if shape != sides(region):
            return None
        return FileRange(self.entry.file, self.entry.offset + start, prod(shape) * self.dtype.itemsize)

    def rows(self, picked: Sequence[int]) -> Tensor:
        """Entries of the first axis, each run of neighbours read alone."""
        out = torch.empty((len(picked), *self.shape[1:]), dtype=self.dtype)
        width = prod(self.shape[1:]) * self.dtype.itemsize
        data, start = out.view(-1).view(torch.uint8) if out.numel() else None, 0
        for end in range(1, len(picked) + 1) if data is not None else ():
            if end == len(picked) or picked[end] != picked[end - 1] + 1:
                self.files.read(self.entry, picked[start] * width, data[start * width : end * width])  # type: ignore[index]
                start = end
        return out

    def _span(self, region: Region) -> tuple[int, tuple[int, ...]]:
        """The smallest span of the file that holds a region: where it starts, in bytes, and its shape."""
        shape, start, width = list(self.shape), 0, self.dtype.itemsize * prod(self.shape)
        for axis, span in enumerate(region):
            width //= max(1, self.shape[axis])
            start += span.start * width
            shape[axis] = len(span)
            if len(span) != 1:
                break
        return start, tuple(shape)

    def _read(self, start: int, shape: tuple[int, ...]) -> Tensor:
        data = _memory(prod(shape) * self.dtype.itemsize)
        self.files.read(self.entry, start, data)
        return data.view(self.dtype).reshape(shape)


def _memory(size: int) -> Tensor:
    """Allocate memory, in large pages if there is much: page faults of 4 KiB cost more than reading a cached file."""
    if size < _LARGE_PAGES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=torch.uint8)
    mapped = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a system built without them
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapped, dtype=torch.uint8)


class DiskTensors:
    """The tensors of a model on disk, by their names in the module. A context manager."""

    def __init__(self, places: Mapping[str, PartialTensor], files: OpenFiles) -> None:
        self.places, self.files = dict(places), files

    def __enter__(self) -> DiskTensors:
        return self

    def __exit__(self, *_: object) -> None:
        self.files.__exit__()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.places[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self.places[name].dtype

    def read(self, name: str) -> Tensor:
        """One whole tensor, in memory of its own."""
        return self.places[name].part(whole(self.shape(name))).contiguous()

    def stored(self, name: str, region: Region) -> FileRange | None:
        """Where the elements of a region lie in one piece."""
        return self.places[name].stored(region)

    def pick(self, name: str, picks: Picks) -> Tensor:
        """Any entries of each axis."""
        place, first = self.places[name], picks[0] if picks else range(0)
        if isinstance(place, FileTensor) and _is_sparse(first):
            every = range(len(first))
            return _chosen(place.rows(first), (every, *picks[1:]), (every, *whole(place.shape[1:])))
        spans = tuple(map(extent, picks))
        return _chosen(place.part(spans), picks, spans)

    def cost(self, name: str, picks: Picks) -> int:
        """Bytes that `pick` reads."""
        place = self.places[name]
        if isinstance(place, FileTensor) and picks and _is_sparse(picks[0]):
            return len(picks[0]) * prod(place.shape[1:]) * place.dtype.itemsize
        return place.cost(tuple(map(extent, picks)))


def _is_sparse(pick: Pick) -> bool:
    return isinstance(pick, tuple) and len(extent(pick)) > _SPARSE * len(pick)


def _chosen(found: Tensor, picks: Picks, spans: Region) -> Tensor:
    """Select the picked entries from what was read for these spans."""
    for axis, (pick, span) in enumerate(zip(picks, spans, strict=True)):
        if isinstance(pick, tuple):
            found = take_along(found, axis, [position - span.start for position in pick])
        elif len(pick) != len(span):
            found = cut_out(found, (*whole(found.shape[:axis]), pick, *whole(found.shape[axis + 1 :])))
    return found


def open_disk(model: nn.Module, folder: Path, weight_files: WeightFiles) -> DiskTensors:
    """Where the tensors of `model` lie in the weight files of `folder`; a tied one is found by each name."""
    files, places = OpenFiles(), dict[str, PartialTensor]()
    parts: dict[str, dict[int, PartialTensor]] = {}
    tied = tied_names(model)
    for file, names in weight_files.items():
        if not shards_of(folder, file)[0].is_file():
            raise ModelError(f"the weights of the model in {folder}", f"no {file}", "get the folder again")
        stored = open_folder(folder, file)
        wanted = list(_stored_once(names, tied))
        if absent := [disk for disk, _ in wanted if disk not in stored.entries]:
            raise ModelError(
                f"read the weights in {folder} a tensor at a time",
                f"{len(absent)} tensors are missing, such as {absent[0]}",
                "get the folder again, or check that its configuration belongs to these weights",
            )
        for disk, target in wanted:
            place = FileTensor(stored.entry(disk), files)
            if isinstance(target, Part):
                parts.setdefault(target.name, {})[target.index] = place
            else:
                places[target] = place
    for name, found in parts.items():
        places[name] = stacked([found[index] for index in sorted(found)])
    return DiskTensors(with_tied(places, tied), files)


def with_tied(places: Mapping[str, PartialTensor], tied: Mapping[str, str]) -> dict[str, PartialTensor]:
    """The same place by each name of a parameter that has several; `tied`: further name -> first."""
    first = {tied.get(name, name): place for name, place in places.items()}
    return first | {name: first[other] for name, other in tied.items() if other in first}


def _stored_once(names: Mapping[str, Target], tied: Mapping[str, str]) -> Iterable[tuple[str, Target]]:
    return ((disk, target) for disk, target in names.items() if target_name(target) not in tied)


@runtime_checkable
class CustomWeightLayout(Protocol):
    """A family whose weight files split or join tensors differently from the module."""

    def sources(
        self, model: nn.Module, values: Mapping[str, TensorToWrite] | None = None
    ) -> dict[str, dict[str, TensorToWrite]]:
        """What to write: file -> name on disk -> tensor. values: the tensors of a skeleton."""

    def open_disk(self, model: nn.Module, folder: Path) -> DiskTensors:
        """Where the tensors of `model` lie in the weight files of `folder`. ModelError where they do not fit."""

    def file_problems(self, model: nn.Module, folder: Path) -> list[str]:
        """What is missing, unexpected or wrongly shaped in a folder, by the files' headers."""

    def texts(self, model: nn.Module, folder: Path) -> Mapping[str, str]:
        """File -> content, in place of what the folder that a compressed model was made from has there."""
