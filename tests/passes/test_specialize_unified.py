"""specialize on models of transformers that see and paint: one task stays to the last bit, the other is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_models import write_recipe
from seeing_models import write_seeing
from torch import nn
from transformers import JanusForConditionalGeneration
from unified_models import model_of, processor_of, write_unified

import umcompress
from umcompress.cli.main import main
from umcompress.documents.base import Task
from umcompress.documents.plan import CompressionRecord, DropModule, Plan
from umcompress.errors import ModelError
from umcompress.extend import Statistics, find_pass
from umcompress.graph.model_graph import trace_model
from umcompress.models.items import ImageText
from umcompress.models.save import save_compressed
from umcompress.models.source import Source, open_source
from umcompress.rewrite.apply import rewrite

UNREAD: dict[tuple[str, Task], set[str]] = {
    ("janus", "understanding"): {"vqmodel", "generation_embeddings", "generation_aligner", "generation_head"},
    ("janus", "generation"): {"vision_model", "aligner", "vqmodel.encoder", "vqmodel.quant_conv"},
    ("emu3", "understanding"): {"vqmodel.decoder", "vqmodel.post_quant_conv"},
    ("emu3", "generation"): {"vqmodel.encoder", "vqmodel.quant_conv"},
}
GREY = np.full((16, 16, 3), 99, np.uint8)


def proposed(source: Source, model: nn.Module, task: Task) -> Plan:
    chosen = find_pass("specialize").model_validate({"task": task})
    plan: Plan = chosen.plan(trace_model(model, source.family), Statistics(dry=True)).plan
    return plan


def dropped(folder: Path, task: Task, skeleton: bool = True) -> set[str]:
    source = open_source(str(folder))
    plan = proposed(source, source.skeleton() if skeleton else source.load(), task)
    return {edit.module for edit in plan.edits if isinstance(edit, DropModule)}


@pytest.mark.parametrize(("name", "task"), UNREAD)
def test_one_task_stays_to_the_last_bit(name: str, task: Task, tmp_path: Path) -> None:
    source = open_source(str(write_unified(name, tmp_path / "model")))
    wanted = {f"model.{path}" for path in UNREAD[name, task]}
    assert dropped(source.folder, task) == dropped(source.folder, task, skeleton=False) == wanted
    first, model = source.runner(source.load()), source.load()
    plan = proposed(source, model, task)
    rewrite(model, source.family, [plan])
    assert "all of its parts" in str(source.family.plain(model, source.folder, [plan]))
    record = CompressionRecord(base=source.name, family=source.family.name, plans=(plan,))
    save_compressed(model, source.family, tmp_path / "out", record, source.folder)
    second = open_source(str(tmp_path / "out"))
    kept = second.runner(second.load())
    outputs, again = first.probe(), kept.probe()
    assert all(torch.equal(outputs[key], value) for key, value in again.items())
    assert {key.startswith("generation.") for key in again} == {task == "generation"} and kept.tasks == (task,)
    sizes = [sum(p.numel() for p in runner.model.parameters()) for runner in (kept, first)]
    assert sizes[0] < 0.7 * sizes[1]
    if task == "understanding":
        assert kept.answer([GREY], ["what?"], 4) == first.answer([GREY], ["what?"], 4)
        with pytest.raises(ModelError, match="specialized for understanding"):
            kept.generate(["a dot"], 0)
    else:
        assert np.array_equal(kept.generate(["a dot"], 0)[0], first.generate(["a dot"], 0)[0])
        with pytest.raises(ModelError, match="specialized for generation"):
            kept.answer([GREY], ["what?"])
        # What paints is trained on pictures that the encoder turned into codes.
        with pytest.raises(ModelError, match=r"vqmodel[\s\S]*specialized for generation"):
            trainer = second.family.trainer(kept.model, second.folder)
            trainer.batch([ImageText(GREY, "a dot")], [np.random.default_rng(0)])


def test_a_run_out_of_core_says_what_went(tmp_path: Path) -> None:
    folder = write_unified("janus", tmp_path / "model")
    recipe = write_recipe(tmp_path, folder, {"pass": "specialize", "task": "understanding"})
    assert main(["apply", str(recipe), "-o", str(tmp_path / "run"), "--out-of-core"]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    before, after = (step["parameters"] for step in report["steps"])
    assert after["total"] < 0.3 * before["total"] and after["active"].keys() == {"understanding"}
    assert report["checkpoint"]["reload_equal"] is True
    model = umcompress.load(str(tmp_path / "run"))
    assert isinstance(model, JanusForConditionalGeneration) and not list(model.model.vqmodel.parameters())
    # transformers would give new weights to what is gone, and must not.
    with pytest.raises((ValueError, TypeError, AttributeError, RuntimeError)):
        JanusForConditionalGeneration.from_pretrained(tmp_path / "run" / "model")


def test_a_head_of_its_own_is_not_read_where_codes_have_another(tmp_path: Path) -> None:
    """The one of the zoo is tied to the embedding, which stays."""
    model = model_of("janus")
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    untied: Any = JanusForConditionalGeneration(model.config)
    untied.save_pretrained(tmp_path)
    processor_of("janus").save_pretrained(tmp_path)
    assert "lm_head" in dropped(tmp_path, "generation")


def test_a_specialized_model_is_not_specialized_for_the_other_task(tmp_path: Path) -> None:
    source = open_source(str(write_unified("janus", tmp_path / "model")))
    model = source.load()
    rewrite(model, source.family, [proposed(source, model, "generation")])
    with pytest.raises(ModelError, match="specialized for generation"):
        proposed(source, model, "understanding")
    with pytest.raises(ModelError, match="already"):
        proposed(source, model, "generation")


@pytest.mark.parametrize("task", ["understanding", "generation"])
@pytest.mark.parametrize(("name", "says"), [
    ("chameleon", "without the decoder"), ("qwen2_5_vl", "run on understanding alone"),
])  # fmt: skip
def test_models_of_one_task_are_refused_in_words(name: str, says: str, task: Task, tmp_path: Path) -> None:
    write = write_unified if name == "chameleon" else write_seeing
    with pytest.raises(ModelError, match=says):
        dropped(write(name, tmp_path / "model"), task)
