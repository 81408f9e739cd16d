"""Models whose forward does not go without a picture, or wants more than text and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from _pico import pico
from hf_models import write_folder, write_recipe

from umcompress.cli.main import main
from umcompress.graph.lower import lower
from umcompress.graph.model_graph import trace_model
from umcompress.models.source import open_source

IDS = torch.arange(5, 17).view(1, 12)
PIXELS = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)


def folder_of(cls: Any, folder: Path) -> Path:
    return write_folder(cls(pico(cls.config_class)).eval(), folder)


@torch.no_grad()
def read(model: Any) -> torch.Tensor:
    """Logits of a picture that is read out."""
    return model(pixel_values=PIXELS, decoder_input_ids=IDS).logits


def test_a_model_that_reads_pictures_out_is_cut(tmp_path: Path) -> None:
    """TrOCR's and Donut's class: a vision encoder, a text decoder, no text in."""
    folder = folder_of(hf.VisionEncoderDecoderModel, tmp_path / "m")
    step = {"pass": "layer_drop", "unit": "block", "drop": [1]}
    assert main(["apply", str(write_recipe(tmp_path, folder, step, evaluate=[])), "-o", str(tmp_path / "run")]) == 0
    reference: Any = hf.VisionEncoderDecoderModel.from_pretrained(folder).eval()
    whole = read(reference)
    reference.decoder.bert.encoder.layer[1].register_forward_hook(lambda _, args, output: args[0])
    theirs = hf.VisionEncoderDecoderModel.from_pretrained(tmp_path / "run" / "model").eval()
    assert theirs.config.decoder.num_hidden_layers == 3
    torch.testing.assert_close(read(theirs), read(reference), rtol=1e-5, atol=1e-5)
    assert (read(theirs) - whole).abs().max() > 1e-3


def test_a_picture_is_given_to_what_takes_no_text_without_one(tmp_path: Path, capsys: Any) -> None:
    """BLIP-2 gives a view of a parameter to a module, which the counter of operations stumbled over."""
    folder = folder_of(hf.Blip2ForConditionalGeneration, tmp_path / "m")
    assert main(["inspect", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "qformer.encoder.layer" in shown and "MACs per token" in shown


def test_blocks_that_always_read_the_picture_say_so(tmp_path: Path) -> None:
    """BLIP's text blocks have no default for it, and are no decoder's by their configuration."""
    folder = folder_of(hf.BlipForConditionalGeneration, tmp_path / "m")
    source = open_source(str(folder))
    model: Any = source.load()
    before = model(pixel_values=PIXELS, input_ids=IDS).logits
    graph = trace_model(model, source.family)
    assert graph.stacks["main"].startswith("text_decoder.")
    for block in graph.blocks():
        lower(model.get_submodule(block.path), graph.block_graph(block.path))
    assert torch.equal(model(pixel_values=PIXELS, input_ids=IDS).logits, before)


@pytest.mark.parametrize("name", ["Udop", "Kosmos2"])
def test_what_wants_more_is_refused(name: str, tmp_path: Path, capsys: Any) -> None:
    folder = folder_of(getattr(hf, f"{name}ForConditionalGeneration"), tmp_path / "m")
    assert main(["inspect", str(folder)]) == 2
    assert "text and a picture do not suffice" in capsys.readouterr().err
