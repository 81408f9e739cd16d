"""A run from a folder in which a file is called as a module of Python's is."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers as hf
from hf_models import write_folder, write_recipe
from hf_zoo import TEXT

from umcompress.cli.main import main


@pytest.mark.parametrize("more", [[], ["--out-of-core"]])
def test_a_file_of_the_users_does_not_stand_in_for_a_module(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT)), tmp_path / "model")
    drop = {"pass": "layer_drop", "component": "shared", "unit": "block", "drop": [1]}
    recipe = write_recipe(tmp_path, tmp_path / "model", drop, evaluate=[])
    (tmp_path / "numbers.py").write_text("print('seven')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["apply", str(recipe), "-o", "run", *more]) == 0
