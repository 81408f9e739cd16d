"""A result that is no ordinary folder: transformers refuses it, and its error says what loads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers as hf
from hf_models import write_folder, write_recipe
from hf_zoo import ZOO

import umcompress
from umcompress.cli.main import main

CHANNELS = {"pass": "channel_prune", "score": "magnitude", "keep_ratio": 0.5}


@pytest.mark.parametrize("layers", ["all", "1"])
def test_the_error_names_us(layers: str, tmp_path: Path) -> None:
    model = write_folder(ZOO["gpt2"].build(), tmp_path / "gpt2")
    drop = {"pass": "layer_drop", "unit": "attention", "drop": [1]}
    recipe = write_recipe(tmp_path, model, CHANNELS | {"layers": layers}, drop, evaluate=[])
    assert main(["apply", str(recipe), "-o", str(tmp_path / "out")]) == 0
    written = tmp_path / "out" / "model"
    assert hf.AutoTokenizer.from_pretrained(written)("a")["input_ids"]
    assert hf.AutoConfig.from_pretrained(written).model_type == "gpt2"
    with pytest.raises(ValueError, match="load_it_with_umcompress"):
        hf.AutoModelForCausalLM.from_pretrained(written)
    # Whoever names an attention of his own is refused all the same.
    with pytest.raises(RuntimeError, match="per-layer"):
        hf.AutoModelForCausalLM.from_pretrained(written, attn_implementation="sdpa")
    assert umcompress.load(written) is not None
