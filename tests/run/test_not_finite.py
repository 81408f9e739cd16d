"""Weights that are NaN or infinite: said where it shows; nothing is chosen or scored by what they make."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as hf
from hf_models import write_folder, write_recipe
from hf_zoo import TEXT
from safetensors.torch import load_file, save_file

from umcompress.cli.main import main
from umcompress.evals.text.perplexity import token_weighted

TEXTS = "the quick brown fox jumps over the lazy dog\n" * 300
DROP = {"pass": "layer_drop", "component": "shared", "unit": "block", "drop_count": 1}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with one infinite weight in its third block, next to a text."""
    home = tmp_path_factory.mktemp("damaged")
    write_folder(hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT)), home / "model")
    weights = load_file(home / "model" / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"][3, 4] = torch.inf
    save_file(weights, home / "model" / "model.safetensors", {"format": "pt"})
    (home / "text.txt").write_text(TEXTS, encoding="utf-8")
    return home


def test_such_a_model_is_not_scored(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = f"perplexity:data={damaged / 'text.txt'},window=16"
    assert main(["evaluate", str(damaged / "model"), "--evaluation", evaluation]) == 1
    assert "not finite (NaN or infinite) at" in capsys.readouterr().err


def test_such_a_model_is_refused_before_hours_are_spent(
    damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = {"perplexity": {"data": str(damaged / "text.txt"), "window": 16}}
    recipe = write_recipe(tmp_path, damaged / "model", DROP, evaluate=[evaluation])
    assert main(["apply", str(recipe), "-o", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert "in 1 tensors, such as model.layers.2.mlp.up_proj.weight" in said and "evaluating" not in said


def test_no_block_is_chosen_by_what_is_no_number(
    damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibration = {"data": str(damaged / "text.txt"), "samples": 2}
    recipe = write_recipe(tmp_path, damaged / "model", DROP, evaluate=[], calibration=calibration)
    assert main(["apply", str(recipe), "-o", str(tmp_path / "run"), "--out-of-core"]) == 2
    said = capsys.readouterr().err
    assert "BlockSimilarity at model.layers.2 (shared)" in said and "not finite" in said


def test_a_perplexity_beyond_all_floats_is_the_largest() -> None:
    score = token_weighted([2000.0, 4000.0], [2, 2], 10)
    assert score.value == 0.0 and score.numbers["perplexity"].value == pytest.approx(8.2e307, rel=0.01)
