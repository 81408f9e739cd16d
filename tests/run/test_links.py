"""`--link`: weight files that nothing changes are taken by reference, the others written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import write_folder, write_recipe
from transformers import LlamaConfig, LlamaForCausalLM

import umcompress
from umcompress.checkpoint import links
from umcompress.cli.main import main

SIZES: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 96}


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Blocks in files of their own; the last one is dropped, so that no other changes its name."""
    folder = write_folder(LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=3)), tmp_path / "llama")
    model = umcompress.load(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="9KB")
    return folder


def apply(folder: Path, model: Path, *more: str) -> int:
    folder.mkdir()
    drop = {"pass": "layer_drop", "unit": "block", "drop": [2]}
    recipe = write_recipe(folder, model, drop, evaluate=[])
    return main(["apply", str(recipe), "-o", str(folder / "run"), *more])


def test_unchanged_files_are_links_and_the_model_is_the_same(
    sharded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "_FICLONE", 0)  # a file system without reflinks
    assert apply(tmp_path / "copied", sharded, "--out-of-core") == 0
    capsys.readouterr()
    assert apply(tmp_path / "linked", sharded, "--out-of-core", "--link") == 0
    said = capsys.readouterr().out
    old = {file.stat().st_ino for file in sharded.glob("*.safetensors")}
    written = tmp_path / "linked" / "run" / "model"
    shared = [file for file in written.glob("*.safetensors") if file.stat().st_ino in old]
    assert 0 < len(shared) < len(old) and f"{len(shared)} weight files are hard links; do not write over" in said
    index = json.loads((written / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index.values()) == {file.name for file in written.glob("*.safetensors")}
    one, other = (umcompress.load(tmp_path / run / "run" / "model").state_dict() for run in ("copied", "linked"))
    assert one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_without_links_files_are_copied(sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("another device")

    monkeypatch.setattr(links, "_FICLONE", 0)
    monkeypatch.setattr("umcompress.checkpoint.links.os.link", refuse)
    assert links.refer(next(sharded.glob("*.safetensors")), tmp_path / "target") is None
    assert not (tmp_path / "target").exists()


def test_it_goes_with_out_of_core(sharded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert apply(tmp_path / "run", sharded, "--link") == 2
    assert "--out-of-core" in capsys.readouterr().err
