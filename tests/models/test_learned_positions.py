"""Models with a table of positions (GPT-2, OPT, BERT-like) take no longer texts: cut to calibrate, refused to score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as hf
from hf_models import write_folder, write_recipe
from hf_zoo import ZOO

from umcompress.cli.main import main
from umcompress.models.hf.inputs import learned_positions
from umcompress.models.items import TextSample
from umcompress.models.source import open_source

LINE = "one line of a text that is longer than the table of positions is long, by a few tens of characters at least\n"


@pytest.mark.parametrize(("name", "most"), [("gpt2", 64), ("opt", 64), ("llama", None), ("qwen2_5_vl", None)])
def test_a_table_of_positions_is_found(name: str, most: int | None) -> None:
    assert learned_positions(ZOO[name].build()) == most


def test_a_table_of_biases_is_one_of_positions(tmp_path: Path) -> None:
    """MPT's: longer texts ended with the RuntimeError of a sum, and so did timing it."""
    config = hf.MptConfig(vocab_size=96, d_model=32, n_layers=2, n_heads=4, expansion_ratio=2, max_seq_len=64)
    model = write_folder(hf.MptForCausalLM(config), tmp_path / "model")
    loaded: Any = open_source(str(model)).load()
    assert learned_positions(loaded) == 64
    (tmp_path / "text.txt").write_text(LINE * 80)
    text = {"perplexity": {"data": str(tmp_path / "text.txt"), "sample_characters": 300, "window": 64}}
    step = {"pass": "head_prune", "keep_ratio": 0.5}
    keys = {"calibration": {"task": "understanding", "samples": 2}}
    recipe = write_recipe(tmp_path, model, step, evaluate=[text], **keys)
    assert main(["apply", str(recipe), "-o", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_longer_texts_calibrate_and_are_not_scored(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each ended with the IndexError of a table."""
    model = write_folder(ZOO[name].build(), tmp_path / "model")
    (tmp_path / "text.txt").write_text(LINE * 80)
    text = {"data": str(tmp_path / "text.txt"), "sample_characters": 300}
    prune = {"pass": "channel_prune", "keep_ratio": 0.5}
    keys = {"calibration": {"task": "understanding", "samples": 2}}
    recipe = write_recipe(tmp_path, model, prune, evaluate=[{"perplexity": text}], **keys)
    assert main(["apply", str(recipe), "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "windows of 512 tokens" in said and "set window: 64" in said
    recipe = write_recipe(tmp_path, model, prune, evaluate=[{"perplexity": text | {"window": 64}}], **keys)
    assert main(["apply", str(recipe), "-o", str(tmp_path / "again")]) == 0
    report = json.loads((tmp_path / "again" / "report.json").read_text())
    assert report["steps"][1]["evaluations"]["perplexity"]["understanding"]["n"] > 1000


def test_longer_texts_train(tmp_path: Path) -> None:
    source = open_source(str(write_folder(ZOO["gpt2"].build(), tmp_path / "model")))
    trainer = source.family.trainer(source.load(), source.folder)
    batch = trainer.batch([TextSample(LINE * 3)], [np.random.default_rng(0)])
    assert trainer.forward(batch).losses["cross_entropy"].shape == (63,)
