"""Mixtures from file to file: experts apart on disk, stacked in the model; never more in memory than is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import VOCABULARY, write_folder, write_recipe
from hf_zoo import TEXT, ZOO
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    NomicBertConfig,
    NomicBertModel,
    PreTrainedModel,
)
from watched_reads import watch_reads

from umcompress.checkpoint import parts
from umcompress.cli.main import main
from umcompress.documents.plan import CompressionRecord, DropBlock, DropBranch, Edit, Plan, SplitExperts
from umcompress.extend import Calibration
from umcompress.models.save import save_compressed, save_plain
from umcompress.models.source import open_source
from umcompress.models.streamed import streamed
from umcompress.passes.head_prune import HeadPrune
from umcompress.plan.memory import BASE, SCORING, predicted
from umcompress.rewrite.apply import rewrite
from umcompress.run.out_of_core import OnDisk, open_on_disk

# Bytes of one expert's matrix in the zoo's Mixtral: 48 channels by 32, and of its two stacks of four.
EXPERT = 48 * 32 * 4
IDS = torch.tensor([[1, 40, 41, 7, 60, 12, 33, 5]])


def save(kind: str, folder: Path, **how: Any) -> Path:
    """The zoo's model of that kind, as transformers saves it."""
    torch.manual_seed(0)
    model = ZOO[kind].build()
    write_folder(model, folder)
    if how:
        for path in folder.glob("*.safetensors*"):
            path.unlink()
        model.save_pretrained(folder, **how)
    return folder


def planned(folder: Path, *edits: Edit) -> tuple[OnDisk, Plan]:
    disk, plan = open_on_disk(open_source(str(folder))), Plan(pass_name="test", edits=edits)
    disk.apply(plan, {})
    return disk, plan


def both_ways(folder: Path, *edits: Edit) -> tuple[Path, Path]:
    """The result of a plan in memory, written as `apply` writes it, and from file to file."""
    source, (disk, plan) = open_source(str(folder)), planned(folder, *edits)
    memory, record = source.load(), CompressionRecord(base="x", family="transformers", plans=(plan,))
    rewrite(memory, source.family, [plan])
    plain = source.family.plain(memory, folder, [plan])
    if isinstance(plain, str):
        save_compressed(memory, source.family, folder / "memory", record, folder)
    else:
        save_plain(plain, folder / "memory", folder)
    disk.write(folder / "disk", record)
    return folder / "memory", folder / "disk"


def same_files(one: Path, other: Path) -> None:
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
    for path in one.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name


def names(folder: Path) -> set[str]:
    return {name for path in folder.glob("*.safetensors") for name in load_file(path)}


def loaded(folder: Path) -> PreTrainedModel:
    found: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    model, info = found
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


def test_a_recipe_of_two_passes_that_measure(tmp_path: Path) -> None:
    """By the command line, in memory and out of core; then transformers alone loads what was written."""
    folder = save("mixtral", tmp_path / "model")
    assert any(".experts.3.w2.weight" in name for name in names(folder))
    drop = {"pass": "layer_drop", "drop_count": 1, "score": "cosine"}
    heads = {"pass": "head_prune", "keep_ratio": 0.5, "score": "contribution"}
    (tmp_path / "lines.jsonl").write_text('{"text": "two cats and a dog"}\n{"text": "what is it?"}\n')
    calibration = {"task": "understanding", "samples": 2, "data": str(tmp_path / "lines.jsonl")}
    recipe = write_recipe(tmp_path, folder, drop, heads, dtype="float32", calibration=calibration)
    for way, more in {"memory": [], "disk": ["--out-of-core"]}.items():
        assert main(["apply", str(recipe), "-o", str(tmp_path / way), *more]) == 0
    assert (tmp_path / "memory" / "plan.json").read_text() == (tmp_path / "disk" / "plan.json").read_text()
    one, other = (tmp_path / way / "model" for way in ("memory", "disk"))
    for path in [*sorted(one.glob("*.safetensors")), one / "config.json"]:
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name
    assert not (other / "umcompress.json").exists()
    assert {name for name in names(folder) if "layers.3" not in name} == names(other)
    with torch.no_grad():
        small = loaded(other)
        assert small.config.num_hidden_layers == 3 and small.config.num_key_value_heads == 1
        assert torch.equal(small(IDS).logits, loaded(one)(IDS).logits)
        assert not torch.equal(small(IDS).logits, loaded(folder)(IDS).logits)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("how", [{}, {"save_original_format": False}, {"max_shard_size": "40KB"}])
def test_whatever_way_the_experts_lie_on_disk(kind: str, how: dict[str, Any], tmp_path: Path) -> None:
    """One tensor an expert, as on the hub; stacked, as the module has them; in several files."""
    folder = save(kind, tmp_path / "model", **how)
    assert any(name.endswith("experts.gate_up_proj") for name in names(folder)) == ("save_original_format" in how)
    same_files(*both_ways(folder, DropBlock(block="model.layers.2")))
    whole, small = loaded(folder).state_dict(), loaded(folder / "disk").state_dict()
    moved = {name.replace("layers.3.", "layers.2.") if "layers.3." in name else name: tensor
             for name, tensor in whole.items() if "layers.2." not in name}
    assert small.keys() == moved.keys()
    assert all(torch.equal(tensor, moved[name]) for name, tensor in small.items())


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_a_model_that_needs_its_plans(kind: str, tmp_path: Path) -> None:
    """Layers that differ: the folder has the experts as the original has them, and loads here."""
    folder = save(kind, tmp_path / "model")
    drop = DropBranch(block="model.layers.1", branch="attention", component="shared")
    memory, disk = both_ways(folder, drop)
    same_files(memory, disk)
    assert (disk / "umcompress.json").exists() and names(disk) < names(folder)
    again = open_on_disk(open_source(str(disk)))
    wanted = open_source(str(memory)).load().state_dict()
    with again.disk:
        assert all(torch.equal(again.read(name), tensor) for name, tensor in wanted.items())


def test_what_lies_joined_on_disk_and_apart_in_the_model(tmp_path: Path) -> None:
    """Queries, keys and values in one tensor: cut in three when read, joined again when written."""
    torch.manual_seed(0)
    folder = write_folder(NomicBertModel(NomicBertConfig(**TEXT)), tmp_path / "model")
    assert any(name.endswith("attn.Wqkv.weight") for name in names(folder))
    memory, disk = both_ways(folder, DropBlock(block="layers.1"))
    same_files(memory, disk)
    assert names(disk) == {name for name in names(folder) if ".layers.3." not in name}


@pytest.mark.parametrize("stacked", [False, True])
def test_never_more_than_an_expert_is_read_at_once(
    stacked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written in another dtype, so that every tensor is made and none copied: each is read once, in pieces."""
    folder = save("mixtral", tmp_path / "model", **({"save_original_format": False} if stacked else {}))
    disk = open_on_disk(open_source(str(folder)), "bfloat16")
    disk.apply(Plan(pass_name="test", edits=(DropBlock(block="model.layers.2"),)), {})
    read = watch_reads(monkeypatch)
    monkeypatch.setattr(parts, "PIECE", EXPERT // 4)
    disk.write(folder / "disk", CompressionRecord(base="x", family="transformers"))
    written = sum(tensor.nbytes for tensor in load_file(folder / "disk" / "model.safetensors").values())
    assert max(read) == EXPERT // 2 and sum(read) == 2 * written
    got, whole = loaded(folder / "disk").state_dict(), loaded(folder).state_dict()
    name = "model.layers.1.mlp.experts.gate_up_proj"
    assert torch.equal(got[name], whole[name].bfloat16())


def test_half_precision_of_the_other_kind_is_not_copied(tmp_path: Path) -> None:
    """Tensors of equal size are not the same bytes."""
    folder = save("mixtral", tmp_path / "model")
    for path in folder.glob("*.safetensors"):
        save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    disk = open_on_disk(open_source(str(folder)), "bfloat16")
    disk.write(folder / "disk", CompressionRecord(base="x", family="transformers"))
    old, new = (load_file(place / "model.safetensors") for place in (folder, folder / "disk"))
    assert all(torch.equal(new[name], tensor.bfloat16()) for name, tensor in old.items())


def test_while_it_runs_a_stack_is_joined_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save("mixtral", tmp_path / "model")
    disk, _ = planned(folder)
    read = watch_reads(monkeypatch)
    with disk.disk, torch.no_grad(), streamed(disk.model, disk.source.family, disk.read):
        got = disk.model(IDS).logits
    assert read.count(EXPERT) == 4 * 4 * 3 and max(read) == VOCABULARY * 32 * 4
    assert torch.equal(got, open_source(str(folder)).load()(IDS).logits)


def test_a_plan_predicts_the_largest_stack(tmp_path: Path) -> None:
    """By hand: nobody scores stacked experts, but one stack may be joined; the rest is scored as ever."""
    source = open_source(str(save("mixtral", tmp_path / "model")))
    stack, always = 4 * 2 * EXPERT, BASE + 4 * parts.PIECE
    assert stack > 32 * 32 * (4 + SCORING)
    # A block: three stacks' worth of experts, attention with half as many keys and values, two norms, a router.
    block = 4 * 3 * EXPERT + 4 * (3 * 32 * 32 + 2 * 32 + 4 * 32)
    outside = 4 * (2 * VOCABULARY * 32 + 32)
    measured = HeadPrune(keep_ratio=0.5, score="contribution"), Calibration(samples=2), 1.0
    for steps in ([], [measured]):
        assert predicted(source.skeleton(), source.family, steps).out_of_core == always + outside + block + stack


def test_a_split_model_as_a_mixture_reads_what_each_expert_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 channels into 8 experts: rows of the first linears are read once in all, the last linear once an expert."""
    hidden, width, experts, layers = 32, 64, 8, 2
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=width, num_hidden_layers=layers,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
    folder = write_folder(LlamaForCausalLM(config), tmp_path / "model")
    order = torch.randperm(width, generator=torch.Generator().manual_seed(1)).tolist()
    groups = tuple(tuple(order[e::experts]) for e in range(experts))
    edits = [SplitExperts(site=f"model.layers.{layer}.mlp", experts=groups, active=2, weighting="softmax")
             for layer in range(layers)]
    disk, plan = planned(folder, *edits)
    record, read = CompressionRecord(base="x", family="transformers", plans=(plan,)), watch_reads(monkeypatch)
    monkeypatch.setattr(parts, "PIECE", 256)
    assert not isinstance(disk.write(folder / "disk", record).plain, str)
    monkeypatch.undo()
    # All else is copied, or zeros. Rows that lie close together are read with what is between: at most four times.
    matrix = layers * hidden * width * 4
    assert 2 * matrix + experts * matrix <= sum(read) <= 4 * 2 * matrix + experts * matrix
    memory = open_source(str(folder)).load()
    rewrite(memory, disk.source.family, [plan])
    plain = disk.source.family.plain(memory, folder, [plan])
    assert not isinstance(plain, str)
    save_plain(plain, folder / "memory", folder)
    same_files(folder / "memory", folder / "disk")
    assert loaded(folder / "disk").config.model_type == "mixtral"
