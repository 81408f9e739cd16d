"""Compare the tensors of a written model with where they come from, a stretch at a time.

What was copied is compared file with file, and what was computed with its value computed again, to the last bit. Both
are found by what the model and the written folder say of themselves, not by what the writer was told.
"""

from __future__ import annotations

import filecmp
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

import numpy as np
import torch

from umcompress.checkpoint.buffers import saved_buffers
from umcompress.checkpoint.parts import FileRange, PartialTensor, whole
from umcompress.documents.plan import DropBlock, Plan
from umcompress.errors import CheckError
from umcompress.rewrite.tensors import Expression, Unchanged, source_of
from umcompress.run.verify import DO

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from umcompress.checkpoint.writer import TensorToWrite
    from umcompress.models.save import BesideWeights
    from umcompress.run.out_of_core import OnDisk

# Bytes that are compared at once: as many as stay in the processor's caches.
STRETCH = 1 << 19
Bytes: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.uint8]]"
# Floating types -> whole numbers of their size, all bits but the sign, and the size of a value by these: of 2^64, whose
# square is beyond float32; and of infinity, beyond which is NaN.
_SIZES = {
    torch.bfloat16: (np.uint16, 0x7FFF, (127 + 64) << 7, 0x7F80),
    torch.float16: (np.uint16, 0x7FFF, 0x7C00, 0x7C00),
    torch.float32: (np.uint32, 0x7FFFFFFF, (127 + 64) << 23, 0x7F800000),
    torch.float64: (np.uint64, (1 << 63) - 1, (1023 + 64) << 52, 0x7FF << 52),
}


@dataclass
class Compared:
    """What was looked at: names of tensors that lie as they did in files of the source, and of those computed.

    not_finite: those with NaN or infinite values; too_large: parameters whose products overflow.
    """

    copied: list[str] = field(default_factory=list)
    computed: list[str] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)
    too_large: list[str] = field(default_factory=list)


def compare_tensors(held: OnDisk, again: OnDisk, asked: str) -> Compared:
    """CheckError where a tensor of `again`, the written model, is missing, or of other bits than that of `held`."""
    found, values = Compared(), held.values()
    if odd := sorted(values.keys() ^ again.disk.places.keys()):
        raise CheckError(asked, f"tensors of one side only: {', '.join(odd[:5])}", DO)
    seen: set[int] = set()
    buffers = saved_buffers(held.model)
    with _Stretches() as stretches, held.disk, again.disk:
        for name, place in again.disk.places.items():
            if id(place) in seen:  # tied: one tensor by another name
                continue
            seen.add(id(place))
            old, new = values[name].stored, place.stored(whole(place.shape))
            expected = (values[name].shape, values[name].dtype)
            if (tuple(place.shape), place.dtype) != expected:
                raise CheckError(asked, f"{name} is {list(place.shape)} of {place.dtype}, not {expected}", DO)
            if old is not None and new is not None:
                found.copied.append(name)
                worst = stretches.compare(old, new, place.dtype)
            else:
                found.computed.append(name)
                worst = _compare_values(values[name], place)
            if worst is None:
                raise CheckError(asked, f"{name} has other values", DO)
            if worst is Worst.NOT_FINITE:
                found.not_finite.append(name)
            elif worst is Worst.TOO_LARGE and name not in buffers:  # a mask may be as large as it likes
                found.too_large.append(name)
    return found


class Worst(IntEnum):
    """The worst value among many."""

    SOUND, TOO_LARGE, NOT_FINITE = range(3)


class _Stretches:
    """Compares ranges of files; each file is open as long as it is needed."""

    def __init__(self) -> None:
        self._open: dict[Path, BinaryIO] = {}
        self._stack = ExitStack()

    def __enter__(self) -> _Stretches:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.clear()
        self._stack.close()

    def compare(self, old: FileRange, new: FileRange, dtype: torch.dtype) -> Worst | None:
        """None where the bytes are not the same."""
        one, other, done, worst = self._descriptor(old.file), self._descriptor(new.file), 0, Worst.SOUND
        # A hard link is the file itself: one look at it says whether its values are sound.
        linked = os.path.sameopenfile(one, other) and old.offset == new.offset
        if old.bytes != new.bytes:
            return None
        while done < new.bytes:
            count = min(STRETCH, new.bytes - done)
            ours = os.pread(other, count, new.offset + done)
            if len(ours) != count or (not linked and os.pread(one, count, old.offset + done) != ours):
                return None
            worst = max(worst, worst_of(np.frombuffer(ours, np.uint8), dtype))
            done += count
        return worst

    def _descriptor(self, file: Path) -> int:
        if file not in self._open:
            self._open[file] = self._stack.enter_context(file.open("rb", buffering=0))
        return self._open[file].fileno()


def worst_of(data: Bytes, dtype: torch.dtype) -> Worst:
    """What the bytes of values come to; types with other rules and whole numbers are sound."""
    if dtype not in _SIZES:
        return Worst.SOUND
    kind, but_sign, large, infinite = _SIZES[dtype]
    largest = int((data.view(kind) & kind(but_sign)).max(initial=0))
    return Worst.NOT_FINITE if largest >= infinite else Worst.TOO_LARGE if largest >= large else Worst.SOUND


def _compare_values(value: TensorToWrite, place: PartialTensor) -> Worst | None:
    """The same of a tensor that is computed, a few rows at a time."""
    row, worst = 0, Worst.SOUND
    for piece in value.pieces() if value.pieces is not None else iter((value.make(),)):
        every = whole(place.shape)
        region = (range(row, row + piece.shape[0]), *every[1:]) if every else every
        row += piece.shape[0] if every else 1
        ours, theirs = _bytes_of(place.part(region)), _bytes_of(piece)
        if len(ours) != len(theirs):
            return None
        for start in range(0, len(ours), STRETCH):
            stretch = ours[start : start + STRETCH]
            if not _same(stretch, theirs[start : start + STRETCH]):
                return None
            worst = max(worst, worst_of(stretch, place.dtype))
    return worst if row == (place.shape[0] if place.shape else 1) else None


def _same(one: Bytes, other: Bytes) -> bool:
    """Eight bytes at a time where they come out even: fewer and wider comparisons."""
    if len(one) % 8 == 0:
        return np.array_equal(one.view(np.uint64), other.view(np.uint64))
    return np.array_equal(one, other)


def _bytes_of(tensor: Tensor) -> Bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)


def compare_beside(beside: BesideWeights, folder: Path, asked: str) -> None:
    """CheckError where a file beside the weights of `folder` is another than was to be written."""
    for name in beside.files.keys() | beside.texts.keys():
        written, text = folder / name, beside.texts.get(name)
        same = written.is_file()
        if same and text is not None:
            same = written.read_bytes() == text.encode()
        elif same and not _written_later(beside.files[name], written):
            same = filecmp.cmp(beside.files[name], written, shallow=False)
        if not same:
            raise CheckError(asked, f"{name} is not what was written", DO)


def _written_later(source: Path, copy: Path) -> bool:
    """A log that goes on in the folder of the model is no longer what was copied, and neither is what is gone."""
    return not source.is_file() or source.stat().st_mtime_ns > copy.stat().st_mtime_ns


def check_origins(
    entries: Mapping[str, Expression], stacks: Sequence[str], before: Sequence[str], plans: Sequence[Plan], asked: str
) -> None:
    """CheckError where a tensor of a block comes from another block than the plans leave at its place.

    stacks: paths of the lists of blocks. before: names of all tensors of the model that the plans start from.
    """
    known, left = set(before), {path: list(range(_count(path, before))) for path in stacks}
    for plan in plans:
        gone = {edit.block for edit in plan.edits if isinstance(edit, DropBlock)}
        for path, blocks in left.items():
            left[path] = [old for place, old in enumerate(blocks) if f"{path}.{place}" not in gone]
    for name, expression in entries.items():
        inside = [path for path in stacks if name.startswith(f"{path}.")]
        origin = source_of(expression)
        if not inside or origin is None:
            continue
        path = max(inside, key=len)
        index, _, rest = name.removeprefix(f"{path}.").partition(".")
        place = int(index)
        start = f"{path}.{left[path][place]}." if place < len(left[path]) else None
        moved = start is None or not origin.startswith(start)
        same = isinstance(expression, Unchanged) and start is not None and start + rest in known
        if moved or (same and origin != f"{start}{rest}"):
            raise CheckError(asked, f"{name} was made of {origin}, where the plans leave {start}", DO)


def _count(path: str, names: Sequence[str]) -> int:
    """How many blocks a list has, by the names of their tensors."""
    indexes = (name.removeprefix(f"{path}.").partition(".")[0] for name in names if name.startswith(f"{path}."))
    return max((int(index) for index in indexes if index.isdecimal()), default=-1) + 1
