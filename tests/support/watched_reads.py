"""What is read from weight files while a test runs."""

from __future__ import annotations

import pytest
from torch import Tensor

from umcompress.checkpoint.disk import OpenFiles
from umcompress.checkpoint.index import Entry


def watch_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each read to come."""
    read, original = list[int](), OpenFiles.read

    def watched(self: OpenFiles, entry: Entry, start: int, data: Tensor) -> None:
        read.append(len(data))
        original(self, entry, start, data)

    monkeypatch.setattr(OpenFiles, "read", watched)
    return read
