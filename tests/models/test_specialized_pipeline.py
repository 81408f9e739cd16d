"""specialize on a pipeline: its text encoder loses what a painted prompt never reads, and paints the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from pipeline_models import config_of, pixart, qwen_image, z_image
from torch import nn

import umcompress
from umcompress.documents.base import Task
from umcompress.documents.plan import CompressionRecord, DropBranch, DropModule, Plan
from umcompress.errors import ModelError, PlanError
from umcompress.extend import Statistics, find_pass
from umcompress.graph.model_graph import trace_model
from umcompress.models.hf.load.run_on_shapes import OnShapes
from umcompress.models.pipelines.one_task import _paint
from umcompress.models.plain_folder import Plain
from umcompress.models.reached import read_in_run
from umcompress.models.save import save_compressed, save_plain
from umcompress.models.source import Source, open_source
from umcompress.rewrite.apply import rewrite
from umcompress.run.out_of_core import open_on_disk
from umcompress.run.verify_changed import verify_changed, waiting

diffusers: Any = pytest.importorskip("diffusers")

CALL = {
    "prompt": ["a red cat on a mat", "dog"], "negative_prompt": [" ", "ugly"], "height": 16, "width": 16,
    "num_inference_steps": 2, "true_cfg_scale": 4.0, "output_type": "np",
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_source(str(qwen_image(tmp_path_factory.mktemp("pipelines") / "qwen-image")))


def proposed(source: Source, model: nn.Module, task: Task = "generation") -> Plan:
    chosen = find_pass("specialize").model_validate({"task": task})
    plan: Plan = chosen.plan(trace_model(model, source.family), Statistics(dry=True)).plan
    return plan


def painted(pipeline: Any) -> Any:
    """Two prompts of different lengths, of which the shorter one is padded."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(**CALL, generator=torch.Generator().manual_seed(0)).images


def test_the_tower_and_the_head_of_the_text_encoder_go_and_diffusers_paints_the_same(
    source: Source, tmp_path: Path
) -> None:
    model = source.load()
    plan = proposed(source, model)
    assert plan == proposed(source, source.skeleton())
    assert {(edit.module, edit.runs) for edit in plan.edits if isinstance(edit, DropModule)} == {
        ("text_encoder.model.visual", False), ("text_encoder.lm_head", True),
    }  # fmt: skip
    before = source.runner(source.load()).probe()
    rewrite(model, source.family, [plan])
    after = source.runner(model).probe()
    assert after.keys() == {"generation.latents", "generation.image"}
    assert all(torch.equal(before[name], value) for name, value in after.items())
    plain = source.family.plain(model, source.folder, [plan])
    assert isinstance(plain, Plain) and plain.loads_with == "diffusers"
    save_plain(plain, tmp_path / "out", source.folder)
    assert config_of(tmp_path / "out", "text_encoder")["architectures"] == ["Qwen2_5_VLTextModel"]
    pipelines = [diffusers.DiffusionPipeline.from_pretrained(folder) for folder in (source.folder, tmp_path / "out")]
    assert np.array_equal(painted(pipelines[0]), painted(pipelines[1]))
    sizes = [sum(p.numel() for p in pipeline.text_encoder.parameters()) for pipeline in pipelines]
    assert sizes[0] - sizes[1] == sum(
        p.numel() for name in ("visual", "lm_head")
        for p in (pipelines[0].text_encoder.model.visual if name == "visual" else pipelines[0].text_encoder.lm_head
                  ).parameters()
    )  # fmt: skip
    again = open_source(str(tmp_path / "out"))
    assert again.runner(again.load()).tasks == ("generation",)


def test_out_of_core_writes_the_same_files(source: Source, tmp_path: Path) -> None:
    model, held = source.load(), open_on_disk(source)
    plan = proposed(source, model)
    rewrite(model, source.family, [plan])
    plain = source.family.plain(model, source.folder, [plan])
    assert isinstance(plain, Plain)
    save_plain(plain, tmp_path / "whole", source.folder)
    held.apply(plan, {})
    record = CompressionRecord(base=source.name, family=source.family.name, plans=(plan,))
    with waiting(held) as waits:
        written = held.write(tmp_path / "disk", record)
        said = verify_changed(held, tmp_path / "disk", written, [plan], waits).checked
        assert "as a whole, since only one of both models has text_encoder." in said
    for file in (file for file in (tmp_path / "whole").rglob("*") if file.is_file()):
        assert (tmp_path / "disk" / file.relative_to(tmp_path / "whole")).read_bytes() == file.read_bytes()


def test_beside_another_cut_that_is_not_plain_it_is_ours(source: Source, tmp_path: Path) -> None:
    model = source.load()
    branch = DropBranch(
        block="transformer.transformer_blocks.0", branch="feed_forward", component="generation", part="txt_mlp.net"
    )
    plans = [Plan(pass_name="test", edits=(branch,)), proposed(source, model)]
    rewrite(model, source.family, plans)
    assert isinstance(source.family.plain(model, source.folder, plans), str)
    record = CompressionRecord(base=source.name, family=source.family.name, plans=tuple(plans))
    save_compressed(model, source.family, tmp_path / "out", record, source.folder)
    again = open_source(str(tmp_path / "out"))
    ours, theirs = source.runner(model).probe(), again.runner(again.load()).probe()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert painted(umcompress.load(tmp_path / "out")).shape == (2, 16, 16, 3)


def test_the_other_task_is_refused_in_words(source: Source) -> None:
    model = source.load()
    with pytest.raises(ModelError, match="a model by itself already"):
        proposed(source, model, "understanding")
    rewrite(model, source.family, [proposed(source, model)])
    with pytest.raises(ModelError, match="specialized for generation"):
        source.runner(model).answer([None], ["what is it?"])
    with pytest.raises(ModelError, match="no weights for understanding"):
        proposed(source, model, "understanding")


def with_head(folder: Path) -> Path:
    """Its text encoder as a whole causal language model."""
    before: Any = transformers.Qwen3Model.from_pretrained(folder / "text_encoder")
    before.config.tie_word_embeddings = False
    whole: Any = transformers.Qwen3ForCausalLM(before.config)
    whole.model.load_state_dict(before.state_dict())
    whole.save_pretrained(folder / "text_encoder")
    index = json.loads((folder / "model_index.json").read_text())
    index["text_encoder"] = ["transformers", "Qwen3ForCausalLM"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_a_causal_language_model_keeps_its_base_and_is_followed_on_shapes_as_with_values(tmp_path: Path) -> None:
    """Z-Image writes what it computes into places that no weight has touched, and reads the last state but one."""
    source = open_source(str(with_head(z_image(tmp_path / "z"))))
    model, shapes = source.load(), source.skeleton()
    reached, called = read_in_run(shapes, _paint, around=OnShapes())
    assert (reached, called) == read_in_run(model, _paint, on_shapes=False)
    assert "text_encoder.model.layers.1.mlp.up_proj.weight" in reached
    assert not any(name.startswith("text_encoder.model.layers.2.") for name in reached)
    plan = proposed(source, shapes)
    assert [edit.module for edit in plan.edits if isinstance(edit, DropModule)] == ["text_encoder.lm_head"]
    rewrite(model, source.family, [plan])
    plain = source.family.plain(model, source.folder, [plan])
    assert isinstance(plain, Plain) and "Qwen3Model" in plain.note
    save_plain(plain, tmp_path / "out", source.folder)
    pictures = []
    for folder in (source.folder, tmp_path / "out"):
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        call = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "np"}
        pictures.append(pipeline("a red cat", generator=torch.Generator().manual_seed(0), **call).images)
    assert np.array_equal(*pictures)


def test_an_encoder_of_which_all_is_read_is_left_alone(tmp_path: Path) -> None:
    source = open_source(str(pixart(tmp_path / "pixart")))
    with pytest.raises(PlanError, match="leave the step out"):
        proposed(source, source.skeleton())
