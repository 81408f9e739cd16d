"""Answers are greedy, and bytes are those of the text that was read, whatever a folder's files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import write_folder
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from umcompress.models.hf.ask.tokenizer import FolderTokenizer
from umcompress.models.source import open_source

SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 256,
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "penalty": {"repetition_penalty": 5.0}, "beams": {"num_beams": 4}, "ngrams": {"no_repeat_ngram_size": 1},
    "suppressed": {"suppress_tokens": list(range(4, 90))}, "several": {"num_return_sequences": 2, "do_sample": True},
    "sampled": {"do_sample": True, "temperature": 5.0}, "at least": {"min_new_tokens": 12},
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = write_folder(LlamaForCausalLM(LlamaConfig(**SIZES)), tmp_path_factory.mktemp("llama"))
    (folder / "generation_config.json").unlink()
    return folder


@torch.no_grad()
def by_hand(runner: Any, question: str, tokens: int) -> str:
    """The likeliest token, again and again."""
    ids = runner.question_ids(question)
    asked = len(ids)
    while len(ids) < asked + tokens and (len(ids) == asked or ids[-1] != 2):
        ids = [*ids, int(runner.model(torch.tensor([ids])).logits[0, -1].argmax())]
    return str(runner.tokenizer.text(torch.tensor(ids[asked:])).strip())


@pytest.mark.parametrize("name", SETTINGS)
def test_answers_take_the_likeliest_token(plain: Path, name: str) -> None:
    file = plain / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": 2, "pad_token_id": 0} | SETTINGS[name]))
    source = open_source(str(plain))
    model: Any = source.load()
    file.unlink()
    runner: Any = source.runner(model)
    questions = ["why is it", "what"]
    assert runner.answer([None, None], questions, 10) == [by_hand(runner, question, 10) for question in questions]
    key, value = next(iter(SETTINGS[name].items()))
    assert getattr(model.generation_config, key) == value


def test_a_beginning_is_of_the_text_itself(tmp_path: Path) -> None:
    """A tokenizer that knows two words in lower case."""
    core = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "cat": 2}, unk_token="<unk>"))
    core.normalizer, core.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>").save_pretrained(tmp_path)
    words, text = FolderTokenizer(tmp_path), "The ÜNUSUAL cat  "
    assert words.beginning(text, 2) == "The ÜNUSUAL" and words.beginning(text, 3) == text
    slow = FolderTokenizer(tmp_path)

    class Slow:
        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": words.continuation_ids(text)}

    slow.tokenizer = Slow()
    assert slow.beginning(text, 1) == "The " and slow.beginning(text, 3) == text
