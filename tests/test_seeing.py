"""Questions about pictures, against transformers' own processors, generation and forwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from seeing_models import KINDS, by_hand, write_seeing
from torch import Tensor
from transformers import GenerationConfig

from umcompress.models.hf.seeing import SeeingRunner
from umcompress.opening import open_source

RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, size, dtype=np.uint8) for size in ((20, 30, 3), (16, 16, 3), (33, 14, 3))]
QUESTIONS = ["what is it?", "how many?", "hm"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write_seeing(name, tmp_path_factory.mktemp(name)) for name in KINDS}


@pytest.fixture(scope="module")
def runners(folders: dict[str, Path]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, folder in folders.items():
        source = open_source(str(folder))
        found[name] = source.family.runner(source.load().double(), source.folder)
        assert isinstance(found[name], SeeingRunner)
    return found


def prepared(name: str, pictures: list[Any], question: str) -> dict[str, Tensor]:
    """What the processor gives, with pictures in double precision."""
    made = by_hand(name, pictures, question)
    return {key: value.double() if value.is_floating_point() else value for key, value in made.items()}


@pytest.mark.parametrize("name", KINDS)
def test_answers_are_those_of_transformers(name: str, runners: dict[str, Any]) -> None:
    runner = runners[name]
    images: list[Any] = [*PICTURES, PICTURES[:2]]
    questions = [*QUESTIONS, "same?"]
    together = runner.answer(images, questions, 5)
    settings = GenerationConfig(do_sample=False, max_new_tokens=5)
    for image, question, answer in zip(images, questions, together, strict=True):
        assert runner.answer([image], [question], 5) == [answer]
        made = prepared(name, image if isinstance(image, list) else [image], question)
        out = runner.model.generate(**made, generation_config=settings)[0, made["input_ids"].shape[1] :]
        assert runner.words.text(out).strip() == answer
    assert len(set(together)) > 1


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_scores_are_those_of_plain_forwards(name: str, runners: dict[str, Any]) -> None:
    runner = runners[name]
    texts = ["no", "yes!", "b"]
    found = runner.score([PICTURES[0], None, PICTURES[2]], ["a?", "b?", "cd?"], [texts, ["no"], ["yes"]])
    assert [len(row) for row in found] == [3, 1, 1]
    for text, likely in zip(texts, found[0], strict=True):
        made = prepared(name, [PICTURES[0]], "a?")
        start, more = made["input_ids"].shape[1], [ord(character) - 28 for character in text]
        nats, greedy = 0.0, True
        # Read anew for each token: no padding, no neighbours, no tokens after it.
        for place, token in enumerate(more):
            call = lengthened(name, made, more[:place])
            chances = torch.log_softmax(runner.model(**call, use_cache=False).logits[0, start + place - 1], -1)
            nats += float(chances[token])
            greedy = greedy and int(chances.argmax()) == token
        assert likely.nats == pytest.approx(nats, rel=1e-5)
        assert likely.greedy == greedy


def lengthened(name: str, made: dict[str, Tensor], more: list[int]) -> dict[str, Tensor]:
    """With text after it: text is 0 everywhere but in PaliGemma, where answers are 1."""
    call = dict(made)
    for key in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"):
        if key in made:
            plain = {"input_ids": more, "attention_mask": [1] * len(more)}
            after = plain.get(key, [int(name == "paligemma")] * len(more))
            call[key] = torch.cat([made[key], torch.tensor([after], dtype=made[key].dtype)], dim=1)
    return call
