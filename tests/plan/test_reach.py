"""Calibration on texts of what only pictures go through is refused before weights are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hf_models import write_folder, write_recipe
from hf_zoo import ZOO
from PIL import Image

from umcompress.cli.main import main

TOWER = "model.visual.blocks"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(ZOO["qwen2_5_vl"].build().eval(), tmp_path_factory.mktemp("reach") / "m")


def recipe(tmp_path: Path, model: Path, row: dict[str, str], **step: Any) -> Path:
    data = tmp_path / "rows.jsonl"
    data.write_text(f"{json.dumps(row)}\n" * 4)
    calibration = {"task": "understanding", "samples": 4, "data": str(data)}
    whole = {"pass": "channel_prune", "stack": TOWER, "keep_ratio": 0.5} | step
    return write_recipe(tmp_path, model, whole, evaluate=[], calibration=calibration)


@pytest.mark.parametrize("command", ["plan", "apply"])
def test_texts_do_not_reach_a_vision_tower(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    path = recipe(tmp_path, folder, {"text": "a text without a picture"})
    more = ["-o", str(tmp_path / "run")] if command == "apply" else []
    assert main([command, str(path), *more]) == 2
    shown = "".join(capsys.readouterr())
    assert f"calibrate the stack {TOWER}" in shown and "the calibration data are texts" in shown
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("step", "picture"), [
    ({"score": "magnitude"}, False), ({"stack": "main"}, False), ({}, True),
], ids=["no data needed", "the language model", "pictures"])  # fmt: skip
def test_what_is_reached_is_planned(folder: Path, tmp_path: Path, step: dict[str, Any], picture: bool) -> None:
    row = {"text": "a text without a picture"}
    if picture:
        Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
        row = {"image": "red.png", "question": "which colour?", "answer": "red"}
    assert main(["plan", str(recipe(tmp_path, folder, row, **step))]) == 0
