"""What fine-tuning leaves in config.json does not end a run, and goes into no result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import write_folder
from transformers import LlamaConfig, LlamaForCausalLM

from umcompress.models.hf.load.leftovers import without_leftovers
from umcompress.models.source import open_source

LEFT: list[dict[str, Any]] = [
    {"_attn_implementation": "flash_attention_2"}, {"attn_implementation": "flash_attention_3"},
    {"_attn_implementation": "kernels-community/flash-attn"}, {"use_return_dict": False}, {"return_dict": False},
    {"is_heterogeneous": False, "_attn_implementation": {"": "flash_attention_2"}},
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    return write_folder(LlamaForCausalLM(config), tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("left", LEFT, ids=str)
def test_leftovers_of_training_change_nothing(folder: Path, left: dict[str, Any]) -> None:
    file = folder / "config.json"
    before = file.read_text()
    ids = torch.tensor([[5, 9, 33]])
    right = open_source(str(folder)).load()(ids).logits
    try:
        file.write_text(json.dumps(json.loads(before) | left))
        source = open_source(str(folder))
        model: Any = source.load()
        runner: Any = source.runner(model)
        assert model.config._attn_implementation == "sdpa" and torch.equal(runner.logits(ids), right)
        assert runner.workload("understanding").seconds > 0
        plain = source.family.plain(model, folder, [])
        assert not isinstance(plain, str) and not left.keys() & json.loads(plain.texts["config.json"]).keys()
    finally:
        file.write_text(before)


def test_parts_of_a_configuration_too() -> None:
    part = {"hidden_size": 4, "_attn_implementation": "flash_attention_2"}
    kept = without_leftovers({"text_config": part, "attn_implementation": "eager", "rope_scaling": {"return_dict": 1}})
    assert kept == {
        "text_config": {"hidden_size": 4}, "attn_implementation": "eager", "rope_scaling": {"return_dict": 1},
    }  # fmt: skip
