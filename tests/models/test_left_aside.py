"""Tensors of weight files that a model has no use for are left aside, and said in plan and report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import write_folder, write_recipe
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Glm4MoeConfig, Glm4MoeForCausalLM, GPTNeoConfig, GPTNeoForCausalLM

from umcompress.cli.main import main
from umcompress.errors import ModelError
from umcompress.models.source import open_source


def neo(folder: Path) -> None:
    """As folders of 2021 are: masks among the weights."""
    config = GPTNeoConfig(
        vocab_size=96, hidden_size=32, num_layers=3, num_heads=4, intermediate_size=48, window_size=8,
        attention_types=[[["global"], 3]], max_position_embeddings=64,
    )  # fmt: skip
    write_folder(GPTNeoForCausalLM(config), folder)
    add(folder, {
        f"transformer.h.{layer}.attn.attention.{name}": value for layer in range(3)
        for name, value in (("bias", torch.ones(1, 1, 64, 64).tril()), ("masked_bias", torch.tensor(-1e9)))
    })  # fmt: skip


def glm(folder: Path) -> None:
    """With a layer behind the last that predicts one more token."""
    sizes: dict[str, Any] = {
        "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
        "max_position_embeddings": 64,
    }  # fmt: skip
    write_folder(Glm4MoeForCausalLM(Glm4MoeConfig(**sizes)), folder)
    add(folder, {f"model.layers.3.{name}.weight": torch.randn(32) for name in ("enorm", "hnorm", "shared_head.norm")})
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_nextn_predict_layers": 1}))


def add(folder: Path, more: dict[str, torch.Tensor]) -> None:
    file = folder / "model.safetensors"
    save_file(load_file(file) | more, file, {"format": "pt"})


@pytest.mark.parametrize(("build", "said"), [
    (neo, "no use for, left aside: transformer.h.0.attn.attention.bias and 5 more"),
    (glm, "predict further tokens (model.layers.3: 3 tensors)"),
])  # fmt: skip
def test_what_is_left_aside_is_said(
    build: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "source"
    torch.manual_seed(0)
    build(folder)
    recipe = write_recipe(tmp_path, folder, {"pass": "layer_drop", "unit": "block", "drop": [2]})
    assert main(["plan", str(recipe)]) == 0
    assert said in " ".join(capsys.readouterr().out.split())
    assert main(["apply", str(recipe), "-o", str(tmp_path / "run")]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert any(said in note for note in report["notes"])
    out = tmp_path / "run" / "model"
    written = json.loads((out / "config.json").read_text())
    assert written.get("num_nextn_predict_layers", 0) == 0
    assert not [name for name in load_file(out / "model.safetensors") if "layers.3" in name or "masked" in name]
    ids = torch.tensor([[5, 9, 33]])
    theirs = AutoModelForCausalLM.from_pretrained(out).eval()
    assert torch.equal(theirs(ids).logits, open_source(str(out)).load()(ids).logits)


def test_other_tensors_are_still_unexpected(tmp_path: Path) -> None:
    neo(tmp_path)
    add(tmp_path, {"transformer.h.0.attn.attention.other": torch.ones(1)})
    with pytest.raises(ModelError, match=r"unexpected transformer\.h\.0\.attn\.attention\.other"):
        open_source(str(tmp_path)).load()
