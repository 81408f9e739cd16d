"""Weight files that nothing changes, by reference instead of by copy: a reflink, else a hard link."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from umcompress.checkpoint.index import read_header
from umcompress.checkpoint.parts import FileRange

# Linux: share the blocks of another file until one of both is written to (Btrfs, XFS, overlays of them).
_FICLONE = 0x40049409


class Stored(Protocol):
    """A tensor to write, and the range of a file that holds its bytes, if one does."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def bytes(self) -> int: ...

    @property
    def stored(self) -> FileRange | None: ...


def whole_files(tensors: Mapping[str, Stored]) -> dict[Path, list[str]]:
    """The files all of whose tensors are to be written as they lie there, under their own names -> those names."""
    by_file: dict[Path, list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.stored is not None:
            by_file.setdefault(tensor.stored.file, []).append(name)
    return {file: sorted(names) for file, names in by_file.items() if _is_whole(file, names, tensors)}


def _is_whole(file: Path, names: list[str], tensors: Mapping[str, Stored]) -> bool:
    header = read_header(file)
    if header.keys() != set(names):
        return False
    for name, entry in header.items():
        tensor = tensors[name]
        # Of equal bytes in the same place also the dtype is equal: a stored range is of the tensor's own.
        if (tensor.shape, tensor.stored) != (entry.shape, FileRange(file, entry.offset, entry.bytes)):
            return False
    return True


def refer(file: Path, target: Path) -> str | None:
    """Make `target` the file: "reflink", "hard link", or None where the file system offers neither."""
    real = file.resolve()
    try:
        with real.open("rb") as old, target.open("wb") as new:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
    except OSError:
        target.unlink(missing_ok=True)
    else:
        return "reflink"
    try:
        os.link(real, target)
    except OSError:
        return None
    return "hard link"
