"""The family of transformers' models: folders in, folders out, text through them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hf_models import write_folder
from hf_subject import run
from hf_zoo import ZOO
from safetensors.torch import load_file, save_file

from umcompress.checkpoint.index import open_folder
from umcompress.cli.main import main
from umcompress.documents.plan import CompressionRecord, DropBlock, DropBranch, Plan
from umcompress.errors import ModelError, UmcompressError, UsageError
from umcompress.models.items import TextSample, UnderstandingItem
from umcompress.models.registry import find_family
from umcompress.models.save import save_compressed, save_plain
from umcompress.models.source import open_source
from umcompress.rewrite.apply import rewrite

TEXTS = ["the cat sat", "on the mat, and slept.", "x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(ZOO["qwen3"].build().eval(), tmp_path_factory.mktemp("models") / "qwen3")


def changed(folder: Path, to: Path, **config: Any) -> Path:
    """A copy with other settings."""
    shutil.copytree(folder, to)
    content = json.loads((to / "config.json").read_text()) | config
    (to / "config.json").write_text(json.dumps(content))
    return to


def test_a_more_specific_family_goes_first(folder: Path, tiny_bagel: Path) -> None:
    assert find_family(folder).name == "transformers"
    assert find_family(tiny_bagel).name == "bagel"


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"model_type": "nobody"}, "nobody"),
        ({"num_hidden_layers": 5, "layer_types": None}, "missing model.layers.4.input_layernorm.weight"),
        ({"intermediate_size": 40}, "is [48, 32], expected [40, 32]"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(folder: Path, tmp_path: Path, config: Any, found: str) -> None:
    with pytest.raises(ModelError) as caught:
        open_source(str(changed(folder, tmp_path / "bad", **config))).load()
    assert found in str(caught.value)


def test_missing_and_unexpected_tensors_are_listed(folder: Path, tmp_path: Path) -> None:
    copied = changed(folder, tmp_path / "bad")
    tensors = load_file(copied / "model.safetensors")
    tensors["stray.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError) as caught:
        open_source(str(copied)).load()
    assert "missing model.norm.weight" in str(caught.value) and "unexpected stray.weight" in str(caught.value)
    (copied / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        open_source(str(copied)).load()


def test_no_tokenizer_is_an_error_only_when_text_is_needed(folder: Path, tmp_path: Path) -> None:
    copied = changed(folder, tmp_path / "bare")
    for file in copied.glob("tokenizer*"):
        file.unlink()
    source = open_source(str(copied))
    runner = source.runner(source.load())
    assert runner.pass_tokens("understanding") == 56
    with pytest.raises(UmcompressError, match="tokenizer"):
        runner.answer([None], ["hello"])


def test_parameters_that_are_tied_in_words_only_stay_apart(folder: Path, tmp_path: Path) -> None:
    copied = changed(folder, tmp_path / "apart")
    tensors = load_file(copied / "model.safetensors")
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 1.5
    save_file(tensors, copied / "model.safetensors", {"format": "pt"})
    source = open_source(str(copied))
    model: Any = source.load()
    assert torch.equal(model.lm_head.weight, tensors["lm_head.weight"])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(copied)
    torch.testing.assert_close(run(model)["text.logits"], run(theirs)["text.logits"], rtol=1e-5, atol=1e-6)
    plan = Plan(pass_name="test", edits=(DropBlock(block="model.layers.2"),))
    plain = source.family.plain(rewrite(model, source.family, [plan]), copied, [plan])
    assert not isinstance(plain, str)
    save_plain(plain, tmp_path / "out", copied)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(run(again)["text.logits"], run(model)["text.logits"])


@pytest.mark.parametrize(("name", "there"), [
    ("mixtral", "model.layers.0.block_sparse_moe.experts.3.w1.weight"),
    ("qwen2_5_vl", "visual.blocks.0.attn.qkv.weight"),
])  # fmt: skip
def test_names_on_disk_are_those_of_the_architecture(name: str, there: str, tmp_path: Path) -> None:
    source = open_source(str(write_folder(ZOO[name].build().eval(), tmp_path / name)))
    model = source.load()
    before = set(open_folder(source.folder).entries)
    assert there in before
    stack = source.family.stacks(model)["main"]
    plan = Plan(pass_name="test", edits=(DropBlock(block=f"{stack}.3"),))
    plain = source.family.plain(rewrite(model, source.family, [plan]), source.folder, [plan])
    assert not isinstance(plain, str)
    save_plain(plain, tmp_path / "out", source.folder)
    gone = {key for key in before if ".layers.3." in key and "visual" not in key}
    assert set(open_folder(tmp_path / "out").entries) == before - gone and gone


def test_bfloat16_is_loaded_as_transformers_loads_it(folder: Path) -> None:
    source = open_source(str(folder), "bfloat16")
    ours: Any = source.load()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in ours.buffers()} == {b.dtype for b in theirs.buffers()}
    assert torch.equal(run(ours)["text.logits"], run(theirs)["text.logits"])
    cast = source.family.cast(source.skeleton(), torch.bfloat16)
    assert [p.dtype for p in cast.parameters()] == [p.dtype for p in ours.parameters()]


def test_answers_do_not_depend_on_what_shares_the_batch(folder: Path) -> None:
    source = open_source(str(folder))
    runner = source.runner(source.load())
    together = runner.answer([None] * 3, TEXTS, 5)
    assert together == [runner.answer([None], [text], 5)[0] for text in TEXTS]
    with pytest.raises(UsageError, match="pictures"):
        runner.answer(["a picture"], ["what is it?"])


def test_calibration_text_goes_through_every_block(folder: Path) -> None:
    source = open_source(str(folder))
    model: Any = source.load()
    seen: list[int] = []
    model.model.layers[-1].register_forward_hook(lambda module, inputs, out: seen.append(inputs[0].shape[:2].numel()))
    items: list[Any] = [*map(TextSample, TEXTS), UnderstandingItem(None, "ab", "c")]
    source.runner(model).feed(items)
    assert sum(seen) == sum(map(len, TEXTS)) + 3


def test_the_trainer_has_the_loss_of_transformers(folder: Path) -> None:
    source = open_source(str(folder))
    model: Any = source.load()
    trainer = source.family.trainer(model, folder)
    batch = trainer.batch([TextSample(text) for text in TEXTS[:2]], [np.random.default_rng(0)] * 2)
    found = trainer.forward(batch)
    losses = found.losses["cross_entropy"]
    assert len(losses) == batch.rows["cross_entropy"] == sum(len(text) - 1 for text in TEXTS[:2])
    start = 0
    for text in TEXTS[:2]:
        ids = torch.tensor([[ord(character) - 28 for character in text]])
        theirs = model(input_ids=ids, labels=ids).loss
        torch.testing.assert_close(losses[start : start + len(text) - 1].mean(), theirs)
        start += len(text) - 1
    assert found.outputs["logits"].shape == (start, 96)


def test_a_recipe_says_what_parts_are_for(folder: Path, tmp_path: Path) -> None:
    source = open_source(str(folder), components={"model.layers.0": "generation", "model.layers.[12]": "understanding"})
    model = source.load()
    assert [source.family.component_of(f"model.layers.{i}.mlp") for i in range(4)] == [
        "generation", "understanding", "understanding", "shared",
    ]  # fmt: skip
    edits = (DropBranch(block="model.layers.0", branch="attention", component="generation"),)
    plan = Plan(pass_name="test", edits=edits)
    rewrite(model, source.family, [plan])
    record = CompressionRecord(
        base="x", family="transformers", components=dict(source.components), plans=(plan,)
    )  # fmt: skip
    save_compressed(model, source.family, tmp_path / "out", record, folder)
    again = open_source(str(tmp_path / "out"))
    assert torch.equal(run(again.load())["text.logits"], run(model)["text.logits"])
    with pytest.raises(UsageError, match="compressed with others"):
        open_source(str(tmp_path / "out"), components={"lm_head": "shared"})


def test_a_recipe_names_the_parts_of_each_component(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The later layers paint, all below one of them is shared again: the longest glob says what a part is for."""
    recipe = tmp_path / "recipe.yaml"
    components = "components: {generation: ['model.layers.[123]', lm_head], shared: [model.layers.3.mlp.*]}"
    step = "{pass: layer_drop, component: generation, unit: feed_forward, keep_ratio: 0.5, score: last}"
    recipe.write_text(f"model: {folder}\n{components}\nevaluate: []\nsteps: [{step}]\n")
    assert main(["apply", str(recipe), "-o", str(tmp_path / "run")]) == 0
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert [edit["block"] for edit in plan["01-layer_drop"]["edits"]] == ["model.layers.2"]
    capsys.readouterr()

    recipe.write_text(recipe.read_text().replace("lm_head", "model.leyers.1, lm_haed"))
    assert main(["plan", str(recipe)]) == 2
    shown = capsys.readouterr().err
    assert "model.leyers.1, lm_haed" in shown
    assert "'model.layers.1'" in shown and "'lm_head'" in shown

    recipe.write_text(f"model: {folder}\ncomponents: {{generation: [lm_head], shared: [lm_head]}}\nsteps: [{step}]\n")
    assert main(["plan", str(recipe)]) == 2
    assert "lm_head is named more than once" in capsys.readouterr().err


def test_a_family_that_knows_its_parts_takes_no_others(tiny_bagel: Path) -> None:
    with pytest.raises(UsageError, match="leave `components` out"):
        open_source(str(tiny_bagel), components={"vae": "shared"})
