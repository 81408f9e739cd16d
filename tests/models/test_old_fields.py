"""Folders as transformers 4 wrote them: what it looks for stays where it looks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import write_folder, write_recipe
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from umcompress.cli.main import main
from umcompress.models.source import open_source

OLD: dict[str, Any] = {
    "rope_theta": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "torch_dtype": "float32",
}  # fmt: skip


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=64, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
    )  # fmt: skip
    folder = write_folder(LlamaForCausalLM(config), tmp_path_factory.mktemp("llama"))
    file = folder / "config.json"
    content = json.loads(file.read_text())
    assert content.pop("rope_parameters")["rope_theta"] == 500.0 and content.pop("dtype") == "float32"
    file.write_text(json.dumps(content | OLD))
    return folder


@pytest.mark.parametrize("unit", ["block", "attention"], ids=["plain", "with layers that differ"])
def test_fields_of_transformers_4_are_kept(old: Path, unit: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, old, {"pass": "layer_drop", "unit": unit, "drop": [1]})
    assert main(["apply", str(recipe), "-o", str(tmp_path / "run")]) == 0
    out = tmp_path / "run" / "model"
    written = json.loads((out / "config.json").read_text())
    assert {name: written[name] for name in OLD} == OLD
    ids = torch.tensor([[5, 9, 33, 21]])
    model: Any = open_source(str(out)).load()
    assert model.config.rope_parameters == {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
    if unit == "block":
        theirs = AutoModelForCausalLM.from_pretrained(out).eval()
        assert torch.equal(theirs(ids).logits, model(ids).logits)
