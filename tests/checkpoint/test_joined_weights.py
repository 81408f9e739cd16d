"""What transformers does to tensors when it loads and saves, recorded on shapes: any part of it can be had alone."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import core_model_loading as loading
from watched_reads import watch_reads

from umcompress.checkpoint import parts
from umcompress.checkpoint.disk import DiskTensors, FileTensor, OpenFiles
from umcompress.checkpoint.index import read_header
from umcompress.checkpoint.joins import OperationResult, entry_of, stacked
from umcompress.checkpoint.recorder import CannotReplay, Recorder
from umcompress.checkpoint.writer import in_parts, write_file

MERGE, CUT = loading.MergeModulelist(dim=0), loading.SplitModulelist(dim=0)
CONFIG = SimpleNamespace(num_attention_heads=2, text_config=SimpleNamespace(moe_num_experts=2))
EXPERTS: dict[str, list[tuple[int, ...]]] = {"a": [(4, 6)] * 3, "b": [(4, 6)] * 3}
# Operations in turn, what goes in, and how many tensors come out.
CHAINS: dict[str, tuple[list[Any], dict[str, list[tuple[int, ...]]], list[str], list[str]]] = {
    "stacked experts": ([MERGE], {"a.*": [(4, 6)] * 3}, ["a.*"], ["x"]),
    "gate and up": ([MERGE, loading.Concatenate(dim=1)], EXPERTS, ["a", "b"], ["x"]),
    "experts apart": ([loading.Chunk(dim=1), CUT], {"x": [(3, 8, 6)]}, ["x"], ["a.*.w1", "a.*.w3"]),
    "fused": ([loading.Chunk(dim=0)], {"x": [(12, 6)]}, ["x"], ["q", "k", "v"]),
    "joined": ([loading.Concatenate(dim=0)], {"q": [(4, 6)], "k": [(2, 6)]}, ["q", "k"], ["x"]),
    "turned": ([loading.Transpose(1, 2)], {"x": [(3, 4, 6)]}, ["x"], ["y"]),
    "turned first": ([loading.Transpose(0, 1)], {"x": [(4, 6)]}, ["x"], ["y"]),
    "woven": ([loading.Interleave(dim=1)], {"x": [(3, 8, 6)]}, ["x"], ["y"]),
    "woven, cut": ([loading.Interleave(dim=0), loading.Chunk(dim=0)], {"x": [(8, 6)]}, ["x"], ["a", "b"]),
    "rotary": ([loading.PermuteForRope()], {"x": [(8, 6)]}, ["x"], ["y"]),
    "rotary bias": ([loading.PermuteForRope(inverse=True)], {"x": [(8,)]}, ["x"], ["y"]),
}


def run(
    operations: list[Any], inputs: dict[str, list[Tensor]], sources: list[str], targets: list[str]
) -> dict[str, Any]:
    converter: Any = loading.WeightConverter(list(sources), list(targets), operations)
    for pattern, tensors in inputs.items():
        for number, tensor in enumerate(tensors):
            converter.add_tensor("made", f"{pattern}.{number}", pattern, tensor)
    made: dict[str, Any] = converter.convert("made", model=None, config=CONFIG)
    return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def on_file(folder: Path, tensors: dict[str, Tensor]) -> tuple[OpenFiles, dict[str, FileTensor]]:
    save_file(tensors, folder / "x.safetensors")
    files = OpenFiles()
    return files, {name: FileTensor(entry, files) for name, entry in read_header(folder / "x.safetensors").items()}


def some_region(dice: random.Random, shape: tuple[int, ...]) -> parts.Region:
    ends = [sorted(dice.sample(range(side + 1), 2)) for side in shape]
    return tuple(range(low, high) for low, high in ends)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_part_of_what_is_made_is_that_part(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    operations, shapes, sources, targets = CHAINS[name]
    seed = torch.Generator().manual_seed(1)
    real = {key: [torch.randn(shape, generator=seed).to(dtype) for shape in group] for key, group in shapes.items()}
    wanted = run(operations, {key: list(group) for key, group in real.items()}, sources, targets)
    flat = {f"{key}.{number}": tensor for key, group in real.items() for number, tensor in enumerate(group)}
    files, leaves = on_file(tmp_path, flat)
    recorder = Recorder()
    with recorder:
        shown = {key: [recorder.watch(leaves[f"{key}.{n}"]) for n in range(len(group))] for key, group in real.items()}
        found = {key: recorder.made(value) for key, value in run(operations, shown, sources, targets).items()}
    assert found.keys() == wanted.keys() and found
    dice = random.Random(1)
    with files:
        for key, value in wanted.items():
            every = parts.whole(value.shape)
            assert found[key].shape == tuple(value.shape) and found[key].dtype == dtype
            assert torch.equal(found[key].part(every), value)
            for _ in range(8):
                region = some_region(dice, tuple(value.shape))
                assert torch.equal(found[key].part(region), parts.cut_out(value, region))
                if (stored := found[key].stored(region)) is not None:
                    lie = stored.file.read_bytes()[stored.offset : stored.offset + stored.bytes]
                    assert lie == parts.cut_out(value, region).contiguous().view(torch.uint8).numpy().tobytes()


def test_what_is_only_cut_out_again_lies_where_it_lay(tmp_path: Path) -> None:
    """Experts stacked on the way in and cut on the way out are copied from file to file, not made."""
    real = {f"{key}.{n}": torch.randn(4, 6) for key in "ab" for n in range(3)}
    _, leaves = on_file(tmp_path, real)
    recorder = Recorder()
    with recorder:
        shown = {key: [recorder.watch(leaves[f"{key}.{n}"]) for n in range(3)] for key in "ab"}
        stack = run(CHAINS["gate and up"][0], shown, ["a", "b"], ["x"])["x"]
        apart = run(CHAINS["experts apart"][0], {"x": [stack]}, ["x"], ["a.*.w1", "a.*.w3"])
    assert len(apart) == 6
    for number in range(3):
        for name, key in (("w1", "a"), ("w3", "b")):
            source = in_parts(recorder.made(apart[f"a.{number}.{name}"]))
            entry = leaves[f"{key}.{number}"].entry
            assert source.stored == (entry.file, entry.offset, entry.bytes)
            assert source.parts is not None and source.parts.cost(parts.whole((4, 6))) == entry.bytes


def test_pieces_of_an_expert_read_that_expert_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PIECE", 2 * 6 * 4)
    real = {"x": torch.randn(3, 8, 6)}
    files, leaves = on_file(tmp_path, real)
    read = watch_reads(monkeypatch)
    with files:
        write_file(tmp_path / "out.safetensors", {"e": in_parts(stacked([entry_of(leaves["x"], 1)]))})
        source = in_parts(entry_of(leaves["x"], 1))
        assert source.pieces is not None
        assert torch.equal(torch.cat(list(source.pieces())), real["x"][1])
    assert read == [2 * 6 * 4] * 4


def test_a_part_that_needs_everything_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a turned matrix are its columns: not read anew for each piece."""
    monkeypatch.setattr(parts, "PIECE", 16)
    real = {"x": torch.randn(16, 8)}
    files, leaves = on_file(tmp_path, real)
    recorder = Recorder()
    with recorder:
        turned = recorder.watch(leaves["x"]).t()
    with files:
        (piece,) = parts.pieces(recorder.made(turned))
        assert torch.equal(piece, real["x"].t())
        assert len(list(parts.pieces(leaves["x"]))) == 16


def test_entries_that_lie_far_apart_are_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = {"x": torch.randn(100, 3)}
    files, leaves = on_file(tmp_path, real)
    disk, read = DiskTensors({"x": leaves["x"]}, files), watch_reads(monkeypatch)
    with disk:
        for rows in ((90, 3, 4, 50), (7, 5, 6), tuple(range(0, 100, 2)), (99,)):
            for columns in (range(3), (2, 0), range(1, 2)):
                picks = (rows, columns)
                wanted = real["x"][list(rows)][:, list(columns)]
                read.clear()
                assert torch.equal(disk.pick("x", picks), wanted)
                assert sum(read) == disk.cost("x", picks)
                assert sum(read) <= 4 * len(rows) * 3 * 4


def test_what_changes_tensors_in_place_is_refused(tmp_path: Path) -> None:
    _, leaves = on_file(tmp_path, {"x": torch.randn(4, 6)})
    recorder = Recorder()
    with pytest.raises(CannotReplay), recorder:
        recorder.watch(leaves["x"]).mul_(2)


def test_other_operations_are_done_on_whole_tensors(tmp_path: Path) -> None:
    real = torch.randn(4, 6)
    files, leaves = on_file(tmp_path, {"x": real})
    recorder = Recorder()
    with recorder:
        made = recorder.watch(leaves["x"]).flip(0) * 2
    source = recorder.made(made)
    assert isinstance(source, OperationResult)
    with files:
        assert torch.equal(source.part((range(1, 3), range(2, 5))), (real.flip(0) * 2)[1:3, 2:5])
