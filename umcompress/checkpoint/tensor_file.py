"""A dictionary of tensors in a temporary file, for values that together do not fit into memory."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections.abc import Iterator, MutableMapping
from math import prod
from typing import TYPE_CHECKING

from umcompress.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class TensorFile(MutableMapping[str, "Tensor"]):
    """A dictionary of tensors in a temporary file, which is deleted with this object.

    What is read is mapped from the file, and writing to it changes nothing there.  UsageError where the disk is full.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._places: dict[str, tuple[int, torch.dtype, tuple[int, ...]]] = {}

    def __setitem__(self, name: str, value: Tensor) -> None:
        import torch

        flat = value.detach().cpu().contiguous().reshape(-1)
        end = self._file.seek(0, os.SEEK_END)
        place = end + -end % mmap.ALLOCATIONGRANULARITY
        data = flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
        try:
            self._file.seek(place)
            while data.nbytes:
                data = data[self._file.write(data) :]
        except OSError as error:
            found = f"{tempfile.gettempdir()} does not take it: {error.strerror}"
            raise UsageError(f"keep {name} until it is written", found, "set TMPDIR to a folder with room") from error
        self._places[name] = place, value.dtype, tuple(value.shape)

    def __getitem__(self, name: str) -> Tensor:
        import torch

        place, dtype, shape = self._places[name]
        size = prod(shape) * dtype.itemsize
        if size == 0:
            return torch.empty(shape, dtype=dtype)
        mapped = mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_COPY, offset=place)
        return torch.frombuffer(mapped, dtype=dtype).reshape(shape)

    def __delitem__(self, name: str) -> None:
        del self._places[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
