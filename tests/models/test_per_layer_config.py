"""Configurations whose layers differ: those that transformers builds, and what is said of the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hf_models import write_folder
from transformers import LlamaConfig, LlamaForCausalLM

from umcompress.cli.main import main

SIZES: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 96,
}  # fmt: skip


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        ({"1": {"intermediate_size": 12}}, "gives layers their own intermediate_size, and the class in this version"),
        ({"1": {"num_key_value_heads": 1}}, "or give all layers one num_key_value_heads"),
        ({"7": {"intermediate_size": 12}}, "got [7]"),
    ],
)
def test_what_transformers_cannot_build(
    layers: dict[str, Any], found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(LlamaForCausalLM(LlamaConfig(**SIZES)), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"per_layer_config": layers}))
    assert main(["inspect", str(folder)]) == 2
    said = capsys.readouterr().err
    assert f"build the model of {folder / 'config.json'}" in said and found in said
    # Advice to whoever writes the class helps nobody here.
    assert "allow_global_per_layer_attribute_access" not in said
