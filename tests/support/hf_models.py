"""Small random models of transformers, and a tokenizer for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 96


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a printable character; 0 pads, 1 begins, 2 ends, 3 is unknown."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *(chr(code) for code in range(32, 32 + VOCABULARY - 4))]
    core = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights large enough that every part matters to the output."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim < 2:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        else:
            parameter.data = torch.randn(parameter.shape, generator=generator) * (0.5 / parameter.shape[-1] ** 0.5)


def write_folder(model: PreTrainedModel, folder: Path, seed: int = 0) -> Path:
    """The model with random weights, saved by transformers itself, with a tokenizer."""
    randomise(model, seed)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def write_recipe(folder: Path, model: Path, *steps: dict[str, Any], **keys: Any) -> Path:
    """A recipe of these steps, without evaluation; JSON is YAML."""
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({"model": str(model), "steps": list(steps)} | keys), encoding="utf-8")
    return path
