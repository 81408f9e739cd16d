"""The stages in which the built-in model is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from umcompress.errors import ModelError
from umcompress.evals.scenes.glyphs import PLURALS
from umcompress.evals.scenes.make_model import train_reading
from umcompress.evals.scenes.make_model.train import configuration
from umcompress.evals.scenes.make_model.train_model import Encoder, Stage, is_generation, run_stage
from umcompress.evals.scenes.make_model.train_reading import description_again, told_again
from umcompress.evals.scenes.make_model.training import Log, Settings
from umcompress.evals.scenes.prompts import NUMBERS, OPPOSITE, sample_prompt
from umcompress.evals.scenes.world import CELL_NAMES, sample_scene
from umcompress.models.bagel.model import Bagel
from umcompress.models.bagel.training import Sample, TextItem, VisionItem


def test_a_stage_goes_on_with_the_frozen_weights_that_it_was_begun_with(tmp_path: Path) -> None:
    def trained(seed: int, steps: int) -> Any:
        torch.manual_seed(0)
        model: Any = nn.ModuleDict({"frozen": nn.Linear(2, 2), "learns": nn.Linear(2, 2)})
        torch.manual_seed(seed)
        nn.init.normal_(model["frozen"].weight)
        model["frozen"].requires_grad_(False)
        stage = Stage("generation", 1, steps, 1e-2, 0.9)
        return run_stage(
            model, stage, lambda rng: model["learns"](model["frozen"](torch.ones(1, 2))).square().sum(),
            Settings(), tmp_path, Log(tmp_path / "log.jsonl"),
        )

    trained(0, 1)
    assert trained(0, 2)["learns"].weight.isfinite().all()
    with pytest.raises(ModelError, match=r"frozen\.weight"):
        trained(1, 3)


def test_a_text_is_told_again_with_the_words_of_each_object_together() -> None:
    rng, orders = np.random.default_rng(0), set()
    for _ in range(60):
        prompt = sample_prompt(rng, "position")
        target, subject = prompt.metadata["include"]
        (relation, _), again = subject["position"], told_again(rng, prompt)
        parts = {
            f"{subject['class']} {subject['color']} {relation}",
            f"{target['class']} {target['color']} {OPPOSITE[relation]}",
        }
        assert set(again.split(", ")) == parts
        orders.add(again.startswith(subject["class"]))
        assert Encoder()(again).min() > 0, "every word is known"
    assert orders == {True, False}
    counted = sample_prompt(rng, "counting")
    (clause,) = counted.metadata["include"]
    assert told_again(rng, counted) == f"{PLURALS[clause['class']]} {NUMBERS[clause['count']]} {clause['color']}"
    scene = sample_scene(rng, objects=3)
    described = {f"{CELL_NAMES[thing.cell]} {thing.shape} {thing.look}" for thing in scene.objects}
    assert set(description_again(rng, scene).split(", ")) == described


def test_texts_train_no_feed_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures without anything to answer: all that is learned is learned from texts."""

    def unasked(encode: Encoder, settings: Settings, rng: np.random.Generator) -> list[Sample]:
        return [[VisionItem(torch.zeros(3, 48, 48)), TextItem(encode("is there a red object?"))]]

    monkeypatch.setattr(train_reading, "understanding_samples", unasked)
    torch.manual_seed(0)
    model = Bagel(configuration())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = Settings(reading_steps=1, reading_batch=2, warm_up=1)
    after = train_reading.train_reading(model, settings, tmp_path, Log(tmp_path / "log.jsonl")).state_dict()
    changed = {name for name, value in after.items() if not value.equal(before[name])}
    assert not any(".mlp." in name or is_generation(name) for name in changed)
    assert {name for name in before if ".self_attn.q_proj.weight" in name and "language" in name} <= changed
