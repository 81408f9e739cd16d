"""Hub ids: what is in the local cache is used, what cannot be had is said; nothing here needs a network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hf_models import VOCABULARY, write_folder
from places import ROOT
from transformers import LlamaConfig, LlamaForCausalLM

from umcompress.documents.model_names import is_hub_id


def cached(home: Path) -> Path:
    """A cache as huggingface_hub lays it out, with one small Llama."""
    commit = "0" * 40
    place = home / "models--someone--tiny"
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    write_folder(LlamaForCausalLM(config), place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    return home


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HUB_CACHE": str(home), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "umcompress", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_model_in_the_cache_is_opened_by_its_id(tmp_path: Path) -> None:
    done = run(cached(tmp_path), "inspect", "someone/tiny")
    assert done.returncode == 0, done.stderr
    assert "model.layers" in done.stdout


def test_a_model_that_cannot_be_had_is_said_in_one_message(tmp_path: Path) -> None:
    done = run(tmp_path, "inspect", "someone/else")
    assert done.returncode == 2
    assert "someone/else" in done.stderr and "check the spelling" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("name", "expected"), [
    ("someone/tiny", True), ("tests/typo", False), ("a/b/c", False), ("tiny", False), ("../x", False), ("/x/y", False),
])  # fmt: skip
def test_what_looks_like_an_id(name: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert is_hub_id(name) is expected
