"""Models that read with an encoder and write with a decoder: measured and cut, never scored as language models."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from hf_models import write_folder, write_recipe

from umcompress.cli.main import main
from umcompress.models.source import open_source

IDS = torch.arange(5, 17).view(2, 6)


def bart() -> hf.PreTrainedModel:
    sizes: dict[str, Any] = {
        f"{part}_{name}": value for part in ("encoder", "decoder")
        for name, value in (("layers", 3), ("attention_heads", 4), ("ffn_dim", 48))
    }  # fmt: skip
    config = hf.BartConfig(vocab_size=96, d_model=32, max_position_embeddings=64, **sizes)
    return hf.BartForConditionalGeneration(config).eval()


def t5() -> hf.PreTrainedModel:
    sizes: dict[str, Any] = {
        "vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4,
        "decoder_start_token_id": 0,
    }  # fmt: skip
    return hf.T5ForConditionalGeneration(hf.T5Config(**sizes)).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, decoder_input_ids=IDS.flip(1)).logits


def test_dropped_decoder_blocks_are_loaded_by_transformers(tmp_path: Path) -> None:
    folder = write_folder(bart(), tmp_path / "m")
    step = {"pass": "layer_drop", "unit": "block", "drop": [1]}
    assert main(["apply", str(write_recipe(tmp_path, folder, step, evaluate=[])), "-o", str(tmp_path / "run")]) == 0
    reference: Any = hf.BartForConditionalGeneration.from_pretrained(folder).eval()
    del reference.model.decoder.layers[1]
    for index, layer in enumerate(reference.model.decoder.layers):
        layer.self_attn.layer_idx = layer.encoder_attn.layer_idx = index
    theirs = hf.BartForConditionalGeneration.from_pretrained(tmp_path / "run" / "model").eval()
    assert (theirs.config.decoder_layers, theirs.config.encoder_layers) == (2, 3)
    assert torch.equal(logits(theirs), logits(reference))


def test_channels_of_the_encoder_are_cut_as_zeroed_ones(tmp_path: Path) -> None:
    folder = write_folder(bart(), tmp_path / "m")
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"text": "the cat sat on the mat"}\n' * 4)
    step = {"pass": "channel_prune", "stack": "model.encoder.layers", "keep_ratio": 0.5}
    recipe = write_recipe(
        tmp_path, folder, step, evaluate=[],
        calibration={"task": "understanding", "samples": 4, "data": str(lines)},
    )  # fmt: skip
    assert main(["apply", str(recipe), "-o", str(tmp_path / "run")]) == 0
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())["01-channel_prune"]
    reference: Any = copy.deepcopy(hf.BartForConditionalGeneration.from_pretrained(folder)).eval()
    for edit in plan["edits"]:
        layer = reference.get_submodule(edit["site"].rpartition(".")[0])
        gone = sorted(set(range(48)) - set(edit["keep"]))
        assert len(gone) == 24
        layer.fc2.weight.data[:, gone] = 0
    ours = open_source(str(tmp_path / "run" / "model")).load()
    torch.testing.assert_close(logits(ours), logits(reference), rtol=1e-5, atol=1e-5)
    theirs = hf.BartForConditionalGeneration.from_pretrained(tmp_path / "run" / "model").eval()
    assert (theirs.config.encoder_ffn_dim, theirs.config.decoder_ffn_dim) == (24, 48)
    assert torch.equal(logits(theirs), logits(ours))


def test_t5_is_inspected_and_not_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(t5(), tmp_path / "m")
    assert main(["inspect", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "encoder.block" in shown and "MACs per token" in shown
    text = tmp_path / "text.txt"
    text.write_text("some words to read, over and over.\n" * 20)
    assert main(["evaluate", str(folder), "--evaluation", f"perplexity:data={text}"]) == 2
    assert "does not generate text" in capsys.readouterr().err


def test_what_takes_neither_text_nor_pictures_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes: dict[str, Any] = {
        f"{part}_{name}": value for part in ("encoder", "decoder")
        for name, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))
    }  # fmt: skip
    config = hf.WhisperConfig(
        vocab_size=96, d_model=32, num_mel_bins=16, max_source_positions=32, max_target_positions=32, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, **sizes,
    )  # fmt: skip
    folder = write_folder(hf.WhisperForConditionalGeneration(config).eval(), tmp_path / "m")
    assert main(["inspect", str(folder)]) == 2
    assert "it takes input_features" in capsys.readouterr().err
