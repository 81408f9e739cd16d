"""What was freed while weights were read does not stay with the process."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from umcompress.models import streamed

SIZE = 25_000  # floats: 100 kB, which the C library never takes from the system by itself


def resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library"
)
def test_free_memory_between_tensors_in_use_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "TRIMMED", 4 * SIZE)
    made = [torch.zeros(SIZE) for _ in range(1000)]
    kept = made[::10]
    del made
    before = resident()
    small = [(nn.Module(), "weight", nn.Parameter(torch.zeros(SIZE // 2)))]
    streamed.give_back(small)
    assert resident() > before - 10_000_000  # so little was read that it is not worth the time
    streamed.give_back([*small, *small])
    assert resident() < before - 60_000_000 and len(kept) == 100
