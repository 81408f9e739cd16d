"""`--skip-evaluations`: evaluations give calibration items and score nothing; so such a recipe runs out of core."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hf_models import write_folder, write_recipe
from hf_zoo import ZOO

from umcompress.cli.main import main

CHANNELS = {"pass": "channel_prune", "keep_ratio": 0.5, "calibration": {"samples": 2}}


def test_out_of_core_with_a_recipe_that_evaluates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_folder(ZOO["llama"].build(), tmp_path / "llama")
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 300, encoding="utf-8")
    scored = [{"perplexity": {"data": str(tmp_path / "text.txt"), "window": 16, "sample_characters": 40}}]
    recipe = str(write_recipe(tmp_path, model, CHANNELS, evaluate=scored))
    assert main(["apply", recipe, "-o", str(tmp_path / "a"), "--out-of-core"]) == 2
    said = capsys.readouterr().err
    assert "perplexity" in said and "--skip-evaluations" in said
    for place, more in (("a", ["--out-of-core"]), ("b", [])):
        assert main(["apply", recipe, "-o", str(tmp_path / place), "--skip-evaluations", *more]) == 0
        report = json.loads((tmp_path / place / "report.json").read_text())
        assert not any(step["evaluations"] or step["scores"] for step in report["steps"])
    weights = [(tmp_path / place / "model" / "model.safetensors").read_bytes() for place in ("a", "b")]
    assert weights[0] == weights[1]
    # A run that scores is another one.
    assert main(["apply", recipe, "-o", str(tmp_path / "b")]) == 2
    assert "the evaluations are: skipped before" in capsys.readouterr().err


def test_a_step_that_is_judged_by_scores_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_folder(ZOO["llama"].build(), tmp_path / "llama")
    (tmp_path / "text.txt").write_text("the quick brown fox\n" * 300, encoding="utf-8")
    gated = {"pass": "layer_drop", "unit": "block", "drop": [1], "stop_if": {"understanding_drop": 0.1}}
    recipe = write_recipe(tmp_path, model, gated, evaluate=[{"perplexity": {"data": str(tmp_path / "text.txt")}}])
    assert main(["apply", str(recipe), "-o", str(tmp_path / "a"), "--skip-evaluations"]) == 2
    assert "01-layer_drop stops the run by scores" in capsys.readouterr().err
