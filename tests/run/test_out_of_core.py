"""From files to files without the model: the same bits as in memory, a block at a time, little of it held."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from drawing import draw_plan, with_values
from hypothesis import given
from hypothesis import strategies as st
from laws import kinds, law, outputs
from pico import FAMILY, MODELS, unified
from pico_on_disk import on_disk, stored
from safetensors.torch import load_file, save_file
from tiny_bagel import write_recipe

from umcompress.calibrate.collect import collect
from umcompress.checkpoint import parts
from umcompress.checkpoint.disk import open_disk
from umcompress.checkpoint.writer import in_parts, write_file
from umcompress.cli.main import main
from umcompress.documents.plan import CompressionRecord, DropBlock, Plan
from umcompress.extend import BlockSimilarity, BranchSimilarity, ChannelMoments, Declaration, HeadContribution, Scope
from umcompress.graph.model_graph import trace_model
from umcompress.models.save import load_compressed, save_compressed
from umcompress.models.source import open_source
from umcompress.models.streamed import LARGE, block_paths, streamed
from umcompress.plan.command import plan as plan_command
from umcompress.plan.memory import BASE, CONSUMERS, SCORING
from umcompress.rewrite.apply import rewrite
from umcompress.rewrite.tensors import Unchanged
from umcompress.rewrite.tensors_in_parts import NewTensor


@kinds
@law
@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_law_b_written_from_files_equals_in_memory(
    kind: str, data: st.DataObject, dtype: torch.dtype, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("home")
    folder = stored(kind, home, dtype)
    memory, disk = MODELS[kind][0]().to(dtype), on_disk(folder)
    plans = []
    for name in ("first", "second"):
        plan, values = with_values(data, draw_plan(data, memory, FAMILY, name), memory, FAMILY)
        rewrite(memory, FAMILY, [plan], [values])
        disk.apply(plan, values)
        plans.append(plan)
    with pytest.MonkeyPatch.context() as patch:
        # Pieces of a few rows each, so that tensors are really cut.
        patch.setattr(parts, "PIECE", data.draw(st.sampled_from([1, 60, 1 << 20])))
        disk.write(home / "out", CompressionRecord(base="pico", family="pico", plans=tuple(plans)))
    record = CompressionRecord(base="pico", family="pico", plans=tuple(plans))
    save_compressed(memory, FAMILY, home / "memory", record, source=home)
    for file in ("model.safetensors", "vision.safetensors", "umcompress.json"):
        if (home / "memory" / file).exists():
            assert (home / "out" / file).read_bytes() == (home / "memory" / file).read_bytes()
    loaded = load_compressed(home / "out", FAMILY, dtype)
    for got, want in zip(outputs(loaded, kind, dtype), outputs(memory, kind, dtype), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("large", [0, LARGE])
@kinds
def test_streamed_outputs_and_statistics_are_those_of_the_model_in_memory(
    kind: str, large: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("umcompress.models.streamed.LARGE", large)
    disk = on_disk(stored(kind, tmp_path))
    memory = MODELS[kind][0]()
    with streamed(disk.model, FAMILY, disk.read):
        got = outputs(disk.model, kind)
    assert all(torch.equal(a, b) for a, b in zip(got, outputs(memory, kind), strict=True))
    assert all(parameter.is_meta for parameter in disk.model.parameters())
    everywhere = Scope(stack="all")
    needs: list[Declaration] = [
        BlockSimilarity(everywhere), BranchSimilarity("attention", everywhere), ChannelMoments(everywhere),
        HeadContribution(everywhere),
    ]  # fmt: skip

    def sweep() -> None:
        with streamed(disk.model, FAMILY, disk.read):
            outputs(disk.model, kind)

    def sweep_in_memory() -> None:
        outputs(memory, kind)

    found = collect(trace_model(disk.model, FAMILY, disk.read), needs, sweep)
    wanted = collect(trace_model(memory, FAMILY), needs, sweep_in_memory)
    for need in needs:
        assert set(found[need]) == set(wanted[need])
        for key in found[need]:
            ours, theirs = found[need]._values[key], wanted[need]._values[key]
            for name, value in vars(theirs).items():
                torch.testing.assert_close(getattr(ours, name), value, rtol=0, atol=1e-6)


def test_only_one_block_is_in_memory(tmp_path: Path) -> None:
    disk = on_disk(stored("unified", tmp_path))
    held: list[int] = []

    def watch(module: torch.nn.Module, inputs: object) -> None:
        blocks = [*disk.model.layers, *disk.model.vision]  # type: ignore[misc]
        held.append(sum(any(not p.is_meta for p in block.parameters()) for block in blocks))

    for block in disk.model.layers:  # type: ignore[union-attr]
        block.post_attention_layernorm.register_forward_pre_hook(watch)
    with streamed(disk.model, FAMILY, disk.read):
        outputs(disk.model, "unified")
    assert held == [1, 1, 1]


def test_tied_weights_are_one_tensor_while_streamed(tmp_path: Path) -> None:
    disk = on_disk(stored("unified", tmp_path))
    model: Any = disk.model
    with streamed(model, FAMILY, disk.read):
        assert model.head.weight is model.embed.weight
        assert torch.equal(model.head.weight, unified().head.weight)
    assert model.head.weight is model.embed.weight


def test_a_large_layer_is_in_memory_while_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("umcompress.models.streamed.LARGE", 16 * 12 * 4)
    disk = on_disk(stored("unified", tmp_path))
    model, places = disk.model, ("embed", "layers.0", "head")
    held: list[tuple[bool, ...]] = []

    def weights(path: str) -> torch.Tensor:
        return next(model.get_submodule(path).parameters())

    def watch(module: torch.nn.Module, inputs: object, output: object) -> None:
        held.append(tuple(0 not in weights(path).stride() and not weights(path).is_meta for path in places))

    for path in places:
        model.get_submodule(path).register_forward_hook(watch)
    with streamed(model, FAMILY, disk.read):
        outputs(model, "unified")
        assert {weights("embed").device.type, weights("head").device.type} == {"cpu"}
    # When the head is called, the block before it is still there, but layers.0 is not: it was another one.
    assert held[0] == (True, False, False) and held[1] == (False, True, False) and held[-1] == (False, False, True)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.get_parameter("head.weight") is model.get_parameter("embed.weight")


def test_a_large_layer_that_is_used_without_a_call_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As heads that compute with the weight of the embedding do."""
    monkeypatch.setattr("umcompress.models.streamed.LARGE", 0)
    disk = on_disk(stored("unified", tmp_path))
    read: list[str] = []

    def noted(name: str) -> torch.Tensor:
        read.append(name)
        return disk.read(name)

    x, embed = torch.randn(3, 12), disk.model.get_submodule("embed")
    with streamed(disk.model, FAMILY, noted):
        assert (embed.weight.device.type, embed.weight.dtype, read.count("embed.weight")) == ("cpu", torch.float32, 0)
        weight: Any = embed.weight
        assert torch.equal(torch.nn.functional.linear(x, weight), x @ unified().embed.weight.t())
        assert read.count("embed.weight") == 1
    assert disk.model.get_parameter("embed.weight").is_meta


def test_a_large_layer_whose_weights_are_listed_is_computed_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch.func does, and whoever takes the weight from a dictionary."""
    monkeypatch.setattr("umcompress.models.streamed.LARGE", 0)
    disk = on_disk(stored("unified", tmp_path))
    x, whole = torch.randn(3, 12), unified()
    model: Any = disk.model
    with streamed(model, FAMILY, disk.read):
        listed = dict(model.named_parameters())["embed.weight"]
        assert (listed.device.type, listed.dtype, listed.shape) == ("cpu", torch.float32, whole.embed.weight.shape)
        assert 0 in listed.stride()
        assert torch.equal(x @ listed.t(), x @ whole.embed.weight.t())
        assert torch.equal(listed[2:4].float(), whole.embed.weight[2:4])
        assert torch.equal(torch.func.functional_call(model.embed, {"weight": listed}, torch.arange(3)),
                           whole.embed.weight[:3])
        assert torch.equal(model.state_dict()["embed.weight"], whole.embed.weight)
    assert model.get_parameter("embed.weight").is_meta


def test_what_is_read_into_large_pages_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after the file is closed and other tensors have come and gone."""
    monkeypatch.setattr("umcompress.checkpoint.disk._LARGE_PAGES", 1)
    disk, memory = on_disk(stored("unified", tmp_path)), unified().state_dict()
    with disk.disk:
        found = {name: disk.read(name) for name in memory}
        for name in memory:
            disk.read(name)[...] = 0
    assert all(torch.equal(found[name], value) for name, value in memory.items())


PRUNE = {"pass": "channel_prune", "component": "generation", "score": "magnitude", "keep_ratio": 0.5}
DROP = {"pass": "layer_drop", "component": "understanding", "unit": "attention", "drop_count": 1}


def apply(recipe: Path, out: Path, *more: str) -> Path:
    assert main(["apply", str(recipe), "-o", str(out), *more]) == 0
    return out


def test_a_run_out_of_core_writes_what_a_run_in_memory_writes(tiny_bagel: Path, tmp_path: Path) -> None:
    calibration = {"task": "understanding", "samples": 3, "source": "scenes"}
    steps = (PRUNE, DROP | {"calibration": calibration})
    recipe = write_recipe(tmp_path, tiny_bagel, *steps, evaluate=[])
    memory = apply(recipe, tmp_path / "memory")
    disk = apply(recipe, tmp_path / "disk", "--out-of-core", "--dtype", "float32")
    models = [open_source(str(folder)).load().state_dict() for folder in (memory, disk)]
    assert models[0].keys() == models[1].keys()
    assert all(models[0][name].equal(tensor) for name, tensor in models[1].items())
    report = json.loads((disk / "report.json").read_text())
    assert report["checkpoint"]["reload_equal"] is True
    assert any("peak" in note for note in report["notes"])
    assert (memory / "plan.json").read_text() == (disk / "plan.json").read_text()
    assert Plan.model_validate(json.loads((disk / "plan.json").read_text())["01-channel_prune"])


def halved(folder: Path, out: Path) -> Path:
    """The same model, stored in bfloat16."""
    shutil.copytree(folder, out)
    state = load_file(folder / "ema.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in state.items()}, out / "ema.safetensors")
    return out


def test_tensors_keep_the_dtype_that_they_are_stored_in(tiny_bagel: Path, tmp_path: Path) -> None:
    """Unless the recipe names one: a checkpoint must not double its size on the way."""
    whole = halved(tiny_bagel, tmp_path / "half")
    recipe = write_recipe(tmp_path, whole, PRUNE, evaluate=[])
    out = apply(recipe, tmp_path / "out", "--out-of-core")
    dtypes = {tensor.dtype for tensor in load_file(out / "model" / "ema.safetensors").values()}
    assert dtypes == {torch.bfloat16}
    assert {tensor.dtype for tensor in load_file(out / "model" / "ae.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize("written", [torch.bfloat16, torch.float16])
def test_bytes_are_copied_only_where_the_dtype_is_the_same(tmp_path: Path, written: torch.dtype) -> None:
    """Float16 and bfloat16 are equally wide: a copy of the bytes would fit, and be other numbers."""
    value = torch.tensor([[1.5, -2.0], [0.25, 3.0]], dtype=torch.float16)
    save_file({"weight": value}, tmp_path / "model.safetensors")
    model = torch.nn.Linear(2, 2, bias=False, device="meta")
    with open_disk(model, tmp_path, {"model.safetensors": {"weight": "weight"}}) as disk:
        source = in_parts(NewTensor(Unchanged("weight"), (2, 2), written, disk))
        assert (source.stored is not None) == (written == value.dtype)
        write_file(tmp_path / "out.safetensors", {"weight": source})
    found = load_file(tmp_path / "out.safetensors")["weight"]
    assert found.dtype == written and torch.equal(found.float(), value.float())


def test_what_cannot_be_done_out_of_core_is_said(
    tiny_bagel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, tiny_bagel, PRUNE)
    assert main(["apply", str(recipe), "-o", str(tmp_path / "run"), "--out-of-core"]) == 2
    said = capsys.readouterr().err
    assert "evaluate" in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_a_plan_predicts_memory(tiny_bagel: Path, tmp_path: Path) -> None:
    """By hand: what is held of the tiny model's widths, and what is not."""
    model = open_source(str(tiny_bagel)).skeleton()
    every = 4 * sum(p.numel() for p in model.parameters())
    square = 8 * sum(96**2 for _ in range(3))
    refit = PRUNE | {"score": "activation", "repair": "least_squares"}
    found = []
    for step in (PRUNE, refit):
        memory = plan_command(str(write_recipe(tmp_path, tiny_bagel, step, evaluate=[]))).memory
        assert memory is not None
        found.append(memory)
    assert found[0].in_memory == BASE + 2 * every
    refitted = sum(4 * p.numel() for n, p in model.named_parameters() if n.endswith("mlp_moe_gen.down_proj.weight"))
    assert refitted > 0
    solved = 8 * (96**2 + 2 * 48**2) + CONSUMERS * 8 * refitted // 4 // 3
    assert found[1].in_memory == BASE + 2 * every + square + solved + refitted
    scored = max(p.numel() for n, p in model.named_parameters() if ".layers." in n) * (4 + SCORING)
    paths = block_paths(model, open_source(str(tiny_bagel)).family)
    blocks = [4 * sum(p.numel() for p in model.get_submodule(path).parameters()) for path in paths]
    assert found[0].out_of_core == BASE + 4 * parts.PIECE + max(scored, every - sum(blocks) + max(blocks))
    assert found[1].out_of_core >= found[0].out_of_core + square


def test_a_plan_predicts_what_is_held_in_the_stored_dtype(tiny_bagel: Path, tmp_path: Path) -> None:
    """Out of core nothing is cast unless the recipe says so; in memory it is."""
    drop = DROP | {"calibration": {"task": "understanding", "samples": 3, "source": "scenes"}}
    found = {}
    for name, folder in (("whole", tiny_bagel), ("half", halved(tiny_bagel, tmp_path / "half"))):
        for dtype in (None, "float32"):
            recipe = write_recipe(tmp_path, folder, drop, evaluate=[], **({"dtype": dtype} if dtype else {}))
            found[name, dtype] = plan_command(str(recipe)).memory
    assert found["whole", None] == found["whole", "float32"] == found["half", "float32"]
    half, whole = found["half", None], found["whole", None]
    assert half is not None and whole is not None
    assert half.in_memory == whole.in_memory
    model = open_source(str(tiny_bagel)).skeleton()
    sizes = {name: p.numel() for name, p in model.named_parameters() if not name.startswith("vae.")}
    blocks = block_paths(model, open_source(str(tiny_bagel)).family)
    held = [sum(size for name, size in sizes.items() if name.startswith(f"{path}.")) for path in blocks]
    assert whole.out_of_core - half.out_of_core == 2 * (sum(sizes.values()) - sum(held) + max(held))


def test_a_model_on_disk_starts_over(tmp_path: Path) -> None:
    """As the one of its source, whatever plans it has been through."""
    disk = on_disk(stored("plain", tmp_path))
    whole = {name: disk.read(name) for name in disk.tensors.entries}
    edit = DropBlock(block=next(iter(FAMILY.stacks(disk.model).values())) + ".0")
    disk.apply(Plan(pass_name="test", edits=(edit,)), {})
    assert disk.model.state_dict().keys() != whole.keys()
    disk.start_over()
    assert disk.model.state_dict().keys() == whole.keys()
    assert all(torch.equal(disk.read(name), value) for name, value in whole.items())
