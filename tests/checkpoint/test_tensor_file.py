"""A dictionary of tensors on disk gives back the bits that it was given, and holds none of them in memory."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from umcompress.documents.plan import Plan, SetTensors
from umcompress.errors import UsageError
from umcompress.extend import TensorFile
from umcompress.run.committed import keep_tensors, kept_tensors

TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(TYPES), st.lists(st.integers(0, 5), max_size=3)), max_size=8))
def test_what_is_read_is_what_was_written(made: list[tuple[torch.dtype, list[int]]]) -> None:
    held, file = {}, TensorFile()
    for number, (dtype, shape) in enumerate(made):
        held[str(number % 5)] = torch.randint(0, 100, shape).to(dtype)
        file[str(number % 5)] = held[str(number % 5)]
    assert list(file) == list(held) and len(file) == len(held)
    for name, value in held.items():
        assert file[name].dtype == value.dtype and torch.equal(file[name], value)


def test_a_transposed_tensor_and_a_changed_one() -> None:
    file, value = TensorFile(), torch.arange(6.0).reshape(2, 3)
    file["a"], file["b"] = value.T, value
    assert torch.equal(file["a"], value.T)
    read = file["b"]
    read.zero_()
    assert torch.equal(file["b"], torch.arange(6.0).reshape(2, 3))
    del file["a"]
    assert list(file) == ["b"] and "a" not in file
    with pytest.raises(KeyError):
        file["a"]


def test_nothing_is_held_and_what_was_read_outlives_the_file() -> None:
    file, value = TensorFile(), torch.ones(1000)
    file["a"], seen = value, weakref.ref(value)
    del value
    gc.collect()
    assert seen() is None
    read = file["a"]
    del file
    gc.collect()
    assert torch.equal(read, torch.ones(1000))


def test_a_plan_keeps_them(tmp_path: Path) -> None:
    file = TensorFile()
    file["b"], file["a"] = torch.ones(3, dtype=torch.bfloat16), torch.arange(4.0)
    plan = keep_tensors(Plan(pass_name="x", edits=(SetTensors(names=("a", "b")),)), file, tmp_path)
    found = kept_tensors(plan, tmp_path)
    assert found.keys() == {"a", "b"} and all(torch.equal(found[name], file[name]) for name in found)


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def seek(self, *_: int) -> int:
            return 0

        def close(self) -> None: ...

        def write(self, _: object) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("umcompress.checkpoint.tensor_file.tempfile.TemporaryFile", lambda **_: Full())
    with pytest.raises(UsageError, match="No space left on device"):
        TensorFile()["a"] = torch.ones(2)
