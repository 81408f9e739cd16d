"""The tokenizer knows every string of the world and gives it back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from umcompress.evals.scenes import prompts, questions, tokenizer, world


@pytest.fixture(scope="module")
def words() -> Any:
    return tokenizer.build_tokenizer()


def test_every_string_comes_back(words: Any) -> None:
    rng = np.random.default_rng(0)
    texts = {prompts.sample_prompt(rng, kind).text for kind in prompts.KINDS for _ in range(500)}
    texts |= set(questions.all_texts())
    for _ in range(300):
        scene = world.sample_scene(rng)
        texts.add(questions.describe(scene))
        for question in questions.sample_questions(rng, scene, 5):
            texts |= {question.text, question.answer}
    ordered = sorted(texts)
    for text, encoding in zip(ordered, words.backend_tokenizer.encode_batch(ordered), strict=True):
        assert words.unk_token_id not in encoding.ids, text
        assert words.backend_tokenizer.decode(encoding.ids) == text


def test_answers_decode_without_odd_spaces(words: Any) -> None:
    for answer in questions.answers():
        ids = words(answer).input_ids
        assert words.decode(ids) == answer
        assert words.decode([*ids, words.eos_token_id], skip_special_tokens=True) == answer


def test_special_tokens_are_single_and_unknown_words_are_unk(words: Any) -> None:
    for token in tokenizer.SPECIAL_TOKENS:
        ids = words(f"{token}red circle{token}").input_ids
        assert ids[0] == ids[-1] == words.convert_tokens_to_ids(token)
        assert len(ids) == 4
    assert words("Red CIRCLE").input_ids == words("red circle").input_ids
    assert words("dragon").input_ids == [words.unk_token_id]
    assert (words.eos_token, words.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_vocabulary_is_sorted_and_not_padded(words: Any) -> None:
    known = tokenizer.vocabulary()
    assert list(known) == sorted(set(known))
    by_id = sorted(words.get_vocab(), key=words.get_vocab().get)
    assert by_id == [tokenizer.UNKNOWN, *known, *tokenizer.SPECIAL_TOKENS]
    assert len(words) == len(by_id) == 113


def test_saved_folder_loads(words: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    words.save_pretrained(tmp_path)
    assert {"tokenizer.json", "tokenizer_config.json"} <= {path.name for path in tmp_path.iterdir()}
    assert "vocab" in json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "<|im_start|>is the red circle left of the blue square?<|im_end|>"
    assert loaded(text).input_ids == words(text).input_ids
    assert loaded.decode(loaded("top left").input_ids) == "top left"
    assert loaded.get_vocab() == words.get_vocab()
