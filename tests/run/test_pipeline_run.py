"""One recipe on a tiny Qwen-Image, through the command line: both halves cut, experts trained, both tasks scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_models import write_recipe
from pipeline_models import qwen_image

import umcompress
from umcompress.cli.main import main
from umcompress.documents.sampling import Sampling
from umcompress.errors import UsageError
from umcompress.evals.scenes.evaluation import Scenes
from umcompress.models.source import open_source

pytest.importorskip("diffusers")

STEPS: list[dict[str, Any]] = [
    {"pass": "layer_drop", "component": "understanding", "drop_count": 1},
    {"pass": "layer_drop", "component": "generation", "drop_count": 1},
    {"pass": "moe_split", "component": "generation", "layers": "all", "experts": 4, "active": 2},
    {"pass": "router_train", "component": "generation", "steps": 2, "batch_size": 2, "tasks": {"generation": 1}},
    {"pass": "adapt", "component": "generation", "steps": 2, "batch_size": 1, "data": "prompts.txt"},
]
NAMES = ["baseline", "01-layer_drop", "02-layer_drop", "03-moe_split", "04-router_train", "05-adapt"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("run")
    model = qwen_image(home / "qwen-image")
    (home / "prompts.txt").write_text("a red cat\ntwo dogs\n")
    recipe = write_recipe(
        home, model, *STEPS, evaluate=[
            {"scenes": {"prompts": 2, "questions": 2}}, {"task_loss": {"items": 3, "times": [0.3, 0.7]}},
            {"fidelity": {"data": "prompts.txt"}},
        ],
        calibration={"task": "generation", "samples": 2, "source": "scenes"},
        sampling={"steps": 2, "guidance": 1.0, "height": 48, "width": 48}, measure={"speed": "off"},
    )  # fmt: skip
    assert main(["apply", str(recipe), "-o", str(home / "out")]) == 0
    return home / "out"


def test_both_tasks_are_scored_after_every_step(done: Path) -> None:
    report = json.loads((done / "report.json").read_text())
    assert [step["name"] for step in report["steps"]] == NAMES
    for step in report["steps"]:
        scores = step["evaluations"]
        assert set(scores["scenes"]) == set(scores["task_loss"]) == {"understanding", "generation"}
        assert set(scores["fidelity"]) == {"generation"}
        loss = scores["task_loss"]["generation"]
        assert loss["lower_is_better"] and len(loss["items"]) == 3 and set(loss["by_kind"]) == {"time 0.3", "time 0.7"}
        assert step["macs_per_token"].keys() == {"understanding", "generation"}
    base, text, paint, *_ = report["steps"]

    def loss_of(step: dict[str, Any], task: str) -> float:
        return float(step["evaluations"]["task_loss"][task]["value"])

    # The text encoder serves both: without one of its layers both losses move; without a block of the transformer one.
    assert all(loss_of(text, task) != loss_of(base, task) for task in ("understanding", "generation"))
    assert loss_of(paint, "understanding") == loss_of(text, "understanding")
    assert loss_of(paint, "generation") != loss_of(text, "generation")
    assert "understanding" in paint["kept"] and "generation" not in paint["kept"]
    assert paint["evaluation_changes"]["task_loss"]["generation"]["paired"]


def test_the_trainings_are_told_of(done: Path) -> None:
    *_, routers, adapted = json.loads((done / "report.json").read_text())["steps"]
    # Pictures with their prompts have a loss of their own; prompts alone are taught.
    assert {"flow", "velocity", "balance"} <= set(routers["training"]["first"])
    assert "velocity" in adapted["training"]["first"] and "flow" not in adapted["training"]["first"]
    assert routers["training"]["parameters"] == 2 * 2 * 4 * 48


def test_the_result_paints_and_is_the_one_that_was_scored(done: Path) -> None:
    report = json.loads((done / "report.json").read_text())
    assert report["checkpoint"]["reload_equal"] is True
    pipeline: Any = umcompress.load(done / "model")
    assert len(pipeline.transformer.transformer_blocks) == 2
    assert len(pipeline.text_encoder.model.language_model.layers) == 3
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline("a red cat", negative_prompt=" ", height=48, width=48, num_inference_steps=1, output_type="np",
                    generator=torch.Generator().manual_seed(0)).images[0]  # fmt: skip
    assert np.isfinite(made).all() and made.std() > 0


def test_scenes_say_which_size_they_judge(done: Path, tmp_path: Path) -> None:
    source = open_source(str(done.parent / "qwen-image"), sampling=Sampling(steps=1, height=16, width=24))
    with pytest.raises(UsageError, match="paints 16 x 24 pixels"):
        Scenes(prompts=1, questions=1).run(source.runner(source.load()), tmp_path, lambda _: None)
