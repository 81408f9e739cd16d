"""`plan` says what `apply` would say of the data of a recipe, and neither reads a weight for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hf_models import write_folder
from tiny_bagel import write_recipe
from transformers import LlamaConfig, LlamaForCausalLM

from umcompress.cli.main import main
from umcompress.documents.previews import PlanReport
from umcompress.report.plan_view import plan_view

DROP = {"pass": "layer_drop", "component": "understanding", "unit": "attention", "drop_count": 1}
ADAPT = {"pass": "adapt", "component": "understanding", "parameters": ["*.self_attn.*"]}
TEXT = {"data": "texts.jsonl", "samples": 2}


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    config = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=96
    )
    return write_folder(LlamaForCausalLM(config), tmp_path / "llama")


def files(folder: Path) -> None:
    (folder / "texts.jsonl").write_text('{"text": "some words"}\n' * 3, encoding="utf-8")
    (folder / "prompts.txt").write_text("a red circle\n", encoding="utf-8")
    shown = {"image": "x.png", "question": "what?"}
    (folder / "shown.jsonl").write_text(json.dumps(shown) + "\n", encoding="utf-8")


def said(recipe: Path, capsys: pytest.CaptureFixture[str], *how: str) -> str:
    """What both say, which must be the same; both end with 2, and apply before it makes a folder."""
    assert main(["plan", str(recipe), "--format", "json"]) == 2
    plan = PlanReport.model_validate(json.loads(capsys.readouterr().out))
    (problem,) = plan.problems
    assert f"apply CANNOT run this: {problem}" in plan_view(plan, "recipe.yaml")
    assert not any("next: umcompress apply" in str(part) for part in plan_view(plan, "recipe.yaml"))
    assert main(["apply", str(recipe), "-o", str(recipe.parent / "run"), *how]) == 2
    refused = capsys.readouterr().err
    place, _, words = problem.partition(": ")
    assert words in refused
    assert place.startswith("evaluate ") or f"step: {place}" in refused
    assert not (recipe.parent / "run").exists()
    return problem


@pytest.mark.parametrize(
    ("steps", "keys", "found"),
    [
        ([DROP, DROP], {}, "01-layer_drop, 02-layer_drop: calibration data\n  found: the recipe names no evaluation"),
        ([ADAPT], {}, "01-adapt: calibration data\n  found: the recipe names no evaluation"),
        ([DROP], {"calibration": {"data": "prompts.txt", "task": "generation"}}, "1 of its 1 rows are for generation"),
        ([DROP], {"calibration": TEXT}, "it gives plain text, which the model is not run on here"),
        ([DROP], {"calibration": {"source": "mme"}}, "the evaluation mme provides none"),
        ([DROP | {"drop": [0], "drop_count": None}], {"evaluate": ["mme"]}, ", the current folder\n  do: put"),
    ],
)
def test_data_that_are_not_there(
    steps: list[dict[str, Any]], keys: dict[str, Any], found: str, tiny_bagel: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    files(tmp_path)
    assert found in said(write_recipe(tmp_path, tiny_bagel, *steps, **{"evaluate": [], **keys}), capsys)


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({"calibration": {"task": "generation", "data": "prompts.txt", "samples": 1}}, "LlamaForCausalLM does underst"),
        ({"calibration": {"source": "scenes"}}, "it shows pictures, and the model is run on text here"),
        ({"calibration": {"data": "shown.jsonl", "samples": 1}}, "it shows pictures, and the model is run on text"),
    ],
)
def test_data_that_the_model_cannot_be_run_on(
    keys: dict[str, Any], found: str, llama: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    files(tmp_path)
    step = DROP | {"component": "shared", "unit": "block"}
    assert found in said(write_recipe(tmp_path, llama, step, **{"evaluate": [], **keys}), capsys, "--out-of-core")


def test_an_evaluation_of_what_the_model_does_not_do(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files(tmp_path)
    step = DROP | {"component": "shared", "unit": "block"}
    keys = {"calibration": TEXT, "evaluate": [{"fidelity": {"data": "prompts.txt"}}]}
    found = said(write_recipe(tmp_path, llama, step, **keys), capsys)
    assert found.startswith("evaluate fidelity: the evaluation fidelity")
    assert "it scores generation; LlamaForCausalLM does understanding here" in found
    # The same recipe without it can be run, and plan says so.
    recipe = write_recipe(tmp_path, llama, step, calibration=TEXT, evaluate=[])
    assert main(["plan", str(recipe)]) == 0
    assert "next: umcompress apply" in capsys.readouterr().out
