"""What is written out of core is checked by its bytes and by running what changed; each kind of damage is refused."""

from __future__ import annotations

import json
import operator
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest
import torch
import transformers as hf
from hf_models import write_folder, write_recipe
from hf_zoo import TEXT
from safetensors.torch import load_file, save_file

from umcompress.cli.main import main
from umcompress.documents.plan import CompressionRecord, DropBlock, Edit, KeepChannels, Plan
from umcompress.errors import CheckError
from umcompress.graph.lower import lower
from umcompress.graph.trace import trace_block
from umcompress.models.source import open_source
from umcompress.rewrite.tensors import TensorMap, Unchanged
from umcompress.run import verify_changed as module
from umcompress.run.held_model import Written
from umcompress.run.out_of_core import OnDisk, open_on_disk
from umcompress.run.verify_changed import Waiting, changed_blocks, differing_fields, unlike, verify_changed, waiting
from umcompress.run.written_bytes import Worst, worst_of

FILE = "model.safetensors"
DROP = (DropBlock(block="model.layers.0"),)
LAST = {"pass": "layer_drop", "component": "shared", "unit": "block", "score": "last", "drop_count": 1}


class Made(NamedTuple):
    held: OnDisk
    written: Written
    plans: list[Plan]
    folder: Path

    def check(self, folder: Path | None = None) -> str:
        return verify_changed(self.held, folder or self.folder, self.written, self.plans, Waiting((), None)).checked


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = hf.LlamaConfig(**TEXT | {"num_hidden_layers": 4})
    return write_folder(hf.LlamaForCausalLM(config), tmp_path_factory.mktemp("llama") / "model")


def made(source: Path, folder: Path, edits: tuple[Edit, ...]) -> Made:
    held, plan = open_on_disk(open_source(str(source))), Plan(pass_name="test", edits=edits)
    held.apply(plan, {})
    record = CompressionRecord(base="llama", family="transformers", plans=(plan,))
    return Made(held, held.write(folder, record), [plan], folder)


@pytest.fixture(scope="module")
def dropped(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The first of four blocks is gone."""
    return made(llama, tmp_path_factory.mktemp("dropped") / "model", DROP)


def flip(folder: Path) -> None:
    """The last byte of the file is another one."""
    data = bytearray((folder / FILE).read_bytes())
    data[-1] ^= 1
    (folder / FILE).write_bytes(data)


def without_one(folder: Path) -> None:
    tensors = load_file(folder / FILE)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / FILE, {"format": "pt"})


def with_one_more(folder: Path) -> None:
    tensors = load_file(folder / FILE)
    save_file(tensors | {"model.layers.1.more": torch.ones(3)}, folder / FILE, {"format": "pt"})


def other_config(folder: Path, **fields: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def swapped(folder: Path) -> None:
    """Two blocks have changed places."""
    old, new = "model.layers.1.", "model.layers.2."
    other = {**{old: new}, **{new: old}}
    tensors = load_file(folder / FILE)
    moved = {other.get(name[: len(old)], name[: len(old)]) + name[len(old) :]: value for name, value in tensors.items()}
    save_file(moved, folder / FILE, {"format": "pt"})


def test_what_is_right_passes_without_another_process(
    dropped: Made, monkeypatch: pytest.MonkeyPatch, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> NoReturn:
        raise AssertionError("no block changed, so none is to be run")

    monkeypatch.setattr(module, "FreshProcess", refuse)
    recipe = write_recipe(tmp_path, llama, LAST, evaluate=[])
    assert main(["apply", str(recipe), "-o", str(tmp_path / "run"), "--out-of-core"]) == 0
    saved = json.loads((tmp_path / "run" / "report.json").read_text())["checkpoint"]
    assert saved["reload_equal"] is True and "0 computed" in saved["checked"] and "no block changed" in saved["checked"]
    assert saved["checked"] in " ".join(capsys.readouterr().out.split())


def test_the_whole_model_runs_where_the_recipe_says_so(llama: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, llama, LAST, evaluate=[], verify="full")
    assert main(["apply", str(recipe), "-o", str(tmp_path / "run"), "--out-of-core"]) == 0
    saved = json.loads((tmp_path / "run" / "report.json").read_text())["checkpoint"]
    assert saved["reload_equal"] is True and saved["checked"] == ""
    assert "verify: full" in (tmp_path / "run" / "recipe.resolved.yaml").read_text()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip, "has other values"),
        (swapped, "has other values"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json is not"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is not"),
        (lambda folder: other_config(folder, more=1), "config.json is not"),
        (without_one, "missing model.layers.1.mlp.up_proj.weight"),
        (with_one_more, "model.layers.1.more"),
        (lambda folder: other_config(folder, num_hidden_layers=2), "model.layers.2"),
        (lambda folder: other_config(folder, num_hidden_layers=4), "missing model.layers.3"),
    ],
)
def test_damage_is_refused(dropped: Made, damage: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    folder = shutil.copytree(dropped.folder, tmp_path / "model")
    dropped.check(folder)
    damage(folder)
    with pytest.raises(CheckError, match=said):
        dropped.check(folder)


def test_a_damaged_model_is_taken_away(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = OnDisk.write

    def damaged(self: OnDisk, folder: Path, record: CompressionRecord) -> Written:
        written = write(self, folder, record)
        flip(folder)
        return written

    monkeypatch.setattr(OnDisk, "write", damaged)
    recipe = write_recipe(tmp_path, llama, LAST, evaluate=[])
    assert main(["apply", str(recipe), "-o", str(tmp_path / "run"), "--out-of-core"]) == 1
    assert "has other values" in capsys.readouterr().err and not (tmp_path / "run" / "model").exists()


def test_wrong_renumbering_is_refused(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = TensorMap.rename

    def crossed(self: TensorMap, prefixes: dict[str, str]) -> None:
        ends = list(prefixes.values())
        rename(self, dict(zip(prefixes, [*ends[:-2], ends[-1], ends[-2]], strict=True)))

    monkeypatch.setattr(TensorMap, "rename", crossed)
    with pytest.raises(CheckError, match=r"layers\.\d.* was made of model\.layers\.\d"):
        made(llama, tmp_path / "model", DROP).check()


def test_a_tensor_of_another_name_in_its_block_is_refused(llama: Path, tmp_path: Path) -> None:
    found = made(llama, tmp_path / "model", DROP)
    norms = ("model.layers.1.input_layernorm.weight", "model.layers.2.post_attention_layernorm.weight")
    found.held.tensors.entries[norms[0]] = Unchanged(norms[1])
    with pytest.raises(CheckError, match=r"was made of model\.layers\.2\.post_attention_layernorm"):
        found.check()


@pytest.mark.parametrize("otherwise", [False, True])
def test_changed_blocks_are_run(llama: Path, otherwise: bool, tmp_path: Path) -> None:
    """Refused where the rewritten block in memory subtracts, and the written one adds."""
    keep = tuple(range(0, TEXT["intermediate_size"], 2))
    edits = tuple(KeepChannels(site=f"model.layers.{index}.mlp", keep=keep) for index in range(4))
    held, plan = open_on_disk(open_source(str(llama))), Plan(pass_name="test", edits=edits)
    held.apply(plan, {})
    assert changed_blocks(held) == tuple(f"model.layers.{index}" for index in range(4))
    with waiting(held) as waits:
        written = held.write(tmp_path / "model", CompressionRecord(base="llama", family="transformers", plans=(plan,)))
        for index in range(4) if otherwise else ():
            subtract(held.model.get_submodule(f"model.layers.{index}"))
        if otherwise:
            with pytest.raises(CheckError, match="differences in"):
                verify_changed(held, tmp_path / "model", written, [plan], waits)
        else:
            said = verify_changed(held, tmp_path / "model", written, [plan], waits).checked
            assert "12 computed" in said and "of 4 parts" in said and "(1 in all)" in said


@pytest.mark.parametrize("place", [(0, 0), (-1, -1)])
def test_a_wrong_bit_in_a_computed_tensor_is_refused(llama: Path, place: tuple[int, int], tmp_path: Path) -> None:
    edits = (KeepChannels(site="model.layers.2.mlp", keep=tuple(range(25))),)
    found, name = made(llama, tmp_path / "model", edits), "model.layers.2.mlp.down_proj.weight"
    tensors = load_file(tmp_path / "model" / FILE)
    tensors[name].view(torch.int32)[place] ^= 1
    save_file(tensors, tmp_path / "model" / FILE, {"format": "pt"})
    with pytest.raises(CheckError, match=r"model\.layers\.2\.mlp\.down_proj\.weight has other values"):
        found.check()


def subtract(block: torch.nn.Module) -> None:
    """The block takes its last branch from its stream."""
    graph = trace_block(block, "block")
    last = [node for node in graph.nodes if node.target in (operator.add, torch.add)][-1]
    last.target = operator.sub if last.target is operator.add else torch.sub
    lower(block, graph)


def test_other_settings_are_noticed(dropped: Made, tmp_path: Path) -> None:
    """They are no refusal by themselves: then all of the model runs."""
    folder = shutil.copytree(dropped.folder, tmp_path / "model")
    blocks = [f"model.layers.{index}" for index in range(3)]
    other_config(folder, rms_norm_eps=0.5)
    again = open_on_disk(open_source(str(folder)))
    said = unlike(dropped.held.model, again.model, blocks)
    assert said == "model.layers.0.input_layernorm has another variance_epsilon"
    same = open_on_disk(open_source(str(dropped.folder)))
    assert unlike(dropped.held.model, same.model, blocks) is None
    assert not differing_fields(dropped.held.model, same.model)
    assert differing_fields(dropped.held.model, again.model) == ["rms_norm_eps"]


def test_infinite_weights_are_refused(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(llama, tmp_path / "model")
    tensors = load_file(folder / FILE)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.inf
    save_file(tensors, folder / FILE, {"format": "pt"})
    recipe = write_recipe(tmp_path, folder, LAST, evaluate=[])
    assert main(["apply", str(recipe), "-o", str(tmp_path / "run"), "--out-of-core"]) == 1
    assert "in 1 tensors, such as model.layers.1.mlp.up_proj.weight" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_worst_value_of_bytes(dtype: torch.dtype) -> None:
    def worst(second: float) -> Worst:
        values = torch.tensor([0.0, second, -2.5, torch.finfo(dtype).tiny / 2], dtype=dtype)
        return worst_of(values.view(torch.uint8).numpy(), dtype)

    assert worst(-1.8e19 if dtype != torch.float16 else -65504) is Worst.SOUND
    if dtype != torch.float16:
        assert worst(-(2.0**64)) is worst(2.0**64) is Worst.TOO_LARGE
    assert worst(torch.inf) is worst(-torch.inf) is worst(torch.nan) is Worst.NOT_FINITE
