"""Weight files: readable by the reference library, deterministic, sharded, damaged; folders appear whole."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from io import FileIO
from pathlib import Path

import pytest
import torch
from pico import FAMILY, text, text_inputs, write_config
from safetensors.torch import load_file
from torch import Tensor

from umcompress.checkpoint import writer
from umcompress.checkpoint.index import open_files, open_folder, read_header
from umcompress.checkpoint.read_ahead import read_ahead
from umcompress.checkpoint.writer import TensorToWrite, in_memory, write_file, write_shards
from umcompress.documents.atomic import atomic_folder, sha256_file, write_text_atomic
from umcompress.documents.plan import CompressionRecord, KeepChannels, Plan
from umcompress.errors import CheckError, ModelError, UsageError
from umcompress.models.save import load_compressed, read_record, save_compressed
from umcompress.rewrite.apply import rewrite

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)


def some_tensors() -> dict[str, Tensor]:
    every = {f"t{i}": torch.arange(3 * i + 1).reshape(1, -1).to(dtype) for i, dtype in enumerate(DTYPES)}
    strided = torch.arange(12.0).reshape(3, 4).T
    return every | {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "strided": strided}


def sources(tensors: dict[str, Tensor]) -> dict[str, TensorToWrite]:
    return {name: in_memory(tensor) for name, tensor in tensors.items()}


def test_the_reference_library_reads_what_we_write(tmp_path: Path) -> None:
    tensors = some_tensors()
    write_file(tmp_path / "a.safetensors", sources(tensors))
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in tensors.items())


def test_the_order_of_tensors_does_not_change_the_bytes(tmp_path: Path) -> None:
    tensors = some_tensors()
    write_file(tmp_path / "a", sources(tensors))
    write_file(tmp_path / "b", sources(dict(reversed(tensors.items()))))
    assert sha256_file(tmp_path / "a") == sha256_file(tmp_path / "b")


def test_shards_and_their_index(tmp_path: Path) -> None:
    tensors = {f"layer.{i}": torch.full((10,), float(i)) for i in range(7)}
    files = write_shards(tmp_path, sources(tensors), max_shard_bytes=100)
    assert [file.name for file in files][:2] == [
        "model-00001-of-00004.safetensors",
        "model-00002-of-00004.safetensors",
    ]
    with open_folder(tmp_path) as checkpoint:
        assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in tensors.items())
        with pytest.raises(ModelError, match=r"did you mean 'layer\.6'"):
            checkpoint.read("layers.6")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 280
    files[2].unlink()
    with pytest.raises(ModelError, match="model-00003-of-00004"):
        open_folder(tmp_path)


def test_the_next_tensor_is_made_while_one_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that come in pieces, among them one that is there as a whole; the bytes are those of all as a whole."""
    values = {name: torch.full((4, 16), number, dtype=torch.float32) for number, name in enumerate("abc")}
    last_made, write = threading.Event(), writer._write

    def pieces(name: str) -> Iterator[Tensor]:
        yield values[name][:3]
        if name == "c":
            last_made.set()
        yield values[name][3:]

    def waits(stream: FileIO, data: memoryview) -> None:
        if data.nbytes == 3 * 16 * 4:
            assert last_made.wait(60), "nothing of the last tensor is made before the first is written"
        write(stream, data)

    def cut(name: str) -> TensorToWrite:
        return TensorToWrite(torch.float32, (4, 16), lambda: values[name], lambda: pieces(name))

    monkeypatch.setattr(writer, "_write", waits)
    monkeypatch.setattr(writer, "read_ahead", partial(read_ahead, depth=4))
    write_file(tmp_path / "pieces.safetensors", {"a": cut("a"), "b": in_memory(values["b"]), "c": cut("c")})
    write_file(tmp_path / "whole.safetensors", {name: in_memory(value) for name, value in values.items()})
    assert (tmp_path / "pieces.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_a_tensor_that_is_not_as_announced_is_refused(tmp_path: Path) -> None:
    wrong = TensorToWrite(torch.float32, (3,), lambda: torch.zeros(2))
    with pytest.raises(CheckError, match="announced"):
        write_file(tmp_path / "a", {"x": wrong})


@pytest.mark.parametrize("keep", [0, 5, 30, 200, -1])
def test_a_file_cut_short_is_a_model_error(tmp_path: Path, keep: int) -> None:
    file = tmp_path / "a.safetensors"
    write_file(file, sources(some_tensors()))
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"a\.safetensors"):
        read_header(file)


@pytest.mark.parametrize("header", [b"[1]", b'{"x":{"dtype":"F32"}}', b'{"x":3}', b"\xff\xfe", b"nonsense"])
def test_a_damaged_header_is_a_model_error(tmp_path: Path, header: bytes) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ModelError):
        read_header(file)


def written(file: Path, *tensors: tuple[str, list[object], object, object], data: int = 16) -> Path:
    """A weight file whose header says this of its tensors: type, shape, first and last offset."""
    header = json.dumps({
        f"t{i}": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        for i, (dtype, shape, start, end) in enumerate(tensors)
    }).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(data))
    return file


@pytest.mark.parametrize(
    ("tensors", "found"),
    [
        ([("F32", [4], -16, 0)], "describes no tensors"),
        ([("F32", [4], -16, 0), ("F32", [4], 0, 16)], "describes no tensors"),
        ([("F32", [2], 0, 8), ("F32", [2], 4, 12), ("F32", [1], 12, 16)], "t1 overlaps"),
        ([("F32", [2], 0, 8), ("F32", [1], 12, 16)], "t1 lies after a gap"),
        ([("F32", [4], 0, 12), ("F32", [1], 12, 16)], "t0 has 12 bytes"),
        ([("F32", [2**62, 4], 0, 16)], "t0 has 16 bytes"),
        ([("F32", [1e30], 0, 16)], "describes no tensors"), ([("F32", [float("inf")], 0, 16)], "describes no tensors"),
        ([("F32", [4], 0, 1e30)], "describes no tensors"), ([("F32", [True], 0, 16)], "describes no tensors"),
        ([("X99", [4], 0, 16)], "elements of type 'X99' in t0"), ([("F32", [2], 0, 8)], "its header says"),
    ],
)  # fmt: skip
def test_tensors_lie_one_after_the_other_each_as_large_as_its_shape(
    tmp_path: Path, tensors: list[tuple[str, list[object], object, object]], found: str
) -> None:
    assert read_header(written(tmp_path / "whole", ("F32", [2], 8, 16), ("I64", [1, 1], 0, 8))).keys() == {"t0", "t1"}
    with pytest.raises(ModelError, match=found):
        read_header(written(tmp_path / "a", *tensors))


def test_a_header_nested_deeply_is_a_model_error(tmp_path: Path) -> None:
    header = b'{"a":' * 50_000
    (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ModelError, match="its header is not readable"):
        read_header(tmp_path / "a")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('{"weight_map": {}}', "no weight_map with tensors"), ("{}", "no weight_map"), ("[1]", "no weight_map"),
        ('{"weight_map": {"a": "../b"}}', "no name of a file"), ('{"weight_map": {"a": 3}}', "no name of a file"),
        ('{"weight_map":' * 50_000, "brackets inside each other"), ("{", "Expecting"),
    ],
)  # fmt: skip
def test_an_index_that_names_no_files_of_its_folder_is_a_model_error(tmp_path: Path, content: str, found: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match=found):
        open_folder(tmp_path)


def test_a_missing_file_and_a_name_twice_are_model_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        read_header(tmp_path / "none")
    for name in "ab":
        write_file(tmp_path / name, {"x": in_memory(torch.zeros(1))})
    with pytest.raises(ModelError, match="x in a and b"):
        open_files([tmp_path / "a", tmp_path / "b"])


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(ZeroDivisionError), atomic_folder(target) as work:
        (work / "half").write_text("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(target) as work:
        assert not target.exists()
        (work / "a").write_text("a")
    with pytest.raises(UsageError, match="exists already"), atomic_folder(target):
        pass
    with atomic_folder(target, replace=True) as work:
        (work / "b").write_text("b")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "b"]


def test_what_a_killed_run_left_is_cleared(tmp_path: Path) -> None:
    target = tmp_path / "out"
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "stale").write_text("stale")
    (tmp_path / ".out.old").mkdir()
    (tmp_path / ".out.old" / "kept").write_text("kept")
    # Killed between the two renames: the old folder is put back, so it is in the way again.
    with pytest.raises(UsageError), atomic_folder(target):
        pass
    assert (target / "kept").exists()
    with atomic_folder(target, replace=True) as work:
        (work / "new").write_text("new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "out"]


def test_a_text_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for content in ("one", "two"):
        write_text_atomic(tmp_path / "a.json", content)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "two")]


def saved(home: Path) -> Path:
    write_config(text(), home)
    (home / "old.safetensors").write_text("not copied")
    (home / "README.md").write_text("not copied")
    plan = Plan(pass_name="t", edits=(KeepChannels(site="layers.0.mlp", keep=(0, 2)),))
    model = rewrite(text(), FAMILY, [plan])
    record = CompressionRecord(base="pico", family="pico", plans=(plan,))
    save_compressed(model, FAMILY, home / "model", record, source=home)
    return home / "model"


def test_a_stored_model_has_what_loading_needs_and_no_more(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "umcompress.json"]
    assert load_compressed(folder, FAMILY)(*text_inputs()).shape == (6, 12)


def test_damage_to_a_stored_model_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["norm.weight"]
    tensors["norm.bias"] = torch.zeros(3)
    tensors["extra"] = torch.zeros(1)
    write_file(folder / "model.safetensors", sources(tensors))
    with pytest.raises(ModelError) as caught:
        load_compressed(folder, FAMILY)
    message = str(caught.value)
    assert "missing norm.weight" in message
    assert "unexpected extra" in message
    assert "norm.bias is [3], expected [12]" in message
    (folder / "umcompress.json").write_text('{"format": 2}')
    with pytest.raises(ModelError):
        read_record(folder)
    (folder / "umcompress.json").unlink()
    with pytest.raises(ModelError, match="No such file"):
        read_record(folder)
