"""Log-likelihoods of continuations against float64 models that predict one token after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_models import write_folder
from tiny_bagel import write_tiny_bagel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from umcompress.errors import UsageError
from umcompress.models.bagel.context import Cache
from umcompress.models.bagel.preprocess import vision_input
from umcompress.models.hf.ask.likelihoods import keeps_keys_and_values, likelihoods
from umcompress.models.runner import Likelihood, likelihood
from umcompress.models.source import open_source


def runner_of(folder: Path) -> Any:
    source = open_source(str(folder))
    return source.runner(source.load())


@pytest.fixture(scope="module")
def bagel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bagel(tmp_path_factory.mktemp("bagel") / "model")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256,
    )
    return write_folder(LlamaForCausalLM(config), tmp_path_factory.mktemp("llama"))


def step_by_step(runner: Any, pictures: Sequence[Any], prompt: str | None, text: str) -> Likelihood:
    """The float64 model of `runner` reads by itself, then is asked for each next token."""
    model, marks = runner.model, runner.model.config.tokens
    cache = Cache(1)
    for picture in pictures:
        model.absorb_vision(cache, [vision_input(picture, model.config).double()])
    if prompt is not None:
        model.absorb_text(cache, [runner.tokenizer.ids(prompt)])
    token, nats, greedy = marks.bos_token_id, 0.0, True
    for wanted in runner.tokenizer.ids(text).tolist():
        rows, _ = model.absorb_text(cache, [torch.tensor([token])], wrap=False)
        logits = model.logits(rows)[0]
        nats += float(logits.log_softmax(-1)[wanted])
        greedy = greedy and int(logits.argmax()) == wanted
        token = wanted
    return Likelihood(nats, greedy)


def test_bagel_scores_pictures_and_text(bagel: Path) -> None:
    runner, exact = runner_of(bagel), runner_of(bagel)
    exact.model.double()
    first, second = (np.random.default_rng(seed).integers(0, 255, (36, 36, 3), dtype=np.uint8) for seed in (0, 1))
    entries = [first, [first, second], None, [second], None]
    prompts = ["what color is the circle?", "where is the red square?", "how many objects are there?", "", None]
    choices = [["red", " top left", ""], ["yes"], ["yes", "no", "there are more red circles"], ["center"], ["is there"]]
    found = runner.score(entries, prompts, choices)
    for entry, prompt, texts, likely in zip(entries, prompts, choices, found, strict=True):
        pictures = [] if entry is None else entry if isinstance(entry, list) else [entry]
        assert len(likely) == len(texts)
        for text, one in zip(texts, likely, strict=True):
            with torch.no_grad():
                expected = step_by_step(exact, pictures, prompt, text)
            assert one.nats == pytest.approx(expected.nats, abs=1e-4) and one.greedy == expected.greedy
    assert found[0][2] == Likelihood(0.0, True)
    assert found[0][0].nats != pytest.approx(runner.score([second], prompts[:1], [["red"]])[0][0].nats, abs=1e-4)


def test_what_bagel_answers_is_what_it_finds_likeliest(bagel: Path) -> None:
    """Greedy decoding and scoring read the same turns."""
    runner = runner_of(bagel)
    picture = np.full((36, 36, 3), 90, dtype=np.uint8)
    question = "is there a red circle?"
    answer = runner.answer([picture], [question], 3)[0]
    assert runner.tokenizer.encode(answer)
    likely, other = runner.score([picture], [question], [[answer, "blue blue blue"]])[0]
    assert likely.greedy and not other.greedy


def test_many_continuations_do_not_change_each_other(bagel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_of(bagel)
    words = ["red", "top left", "yes", "how many red circles are there?", "blue"]
    picture = np.full((36, 36, 3), 30, dtype=np.uint8)
    together = runner.score([picture], ["what?"], [words])[0]
    monkeypatch.setattr("umcompress.models.bagel.runner.SCORED_TOKENS", 1)
    for one, other in zip(together, runner.score([picture], ["what?"], [words])[0], strict=True):
        assert one.nats == pytest.approx(other.nats, abs=1e-4) and one.greedy == other.greedy


def test_llama_scores_text(llama: Path) -> None:
    runner = runner_of(llama)
    exact = AutoModelForCausalLM.from_pretrained(llama).double()
    prompts = ["a dog ran  ", "the cat", None]
    choices = [["far", " away"], [" sat on a mat", ""], ["nobody knows"]]
    for prompt, texts, likely in zip(prompts, choices, runner.score([None] * 3, prompts, choices), strict=True):
        for text, one in zip(texts, likely, strict=True):
            # One character a token; nothing before the first text but the token that begins texts.
            before = runner.tokenizer.continuation_ids(prompt) if prompt else [1]
            nats, greedy = 0.0, True
            spaces = len(prompt) - len(prompt.rstrip()) if prompt else 0
            wanted = runner.tokenizer.continuation_ids((" " * spaces) + text)
            before = before[: len(before) - spaces]
            for token in wanted:
                with torch.no_grad():
                    logits = exact(torch.tensor([before])).logits[0, -1]
                nats += float(logits.log_softmax(-1)[token])
                greedy = greedy and int(logits.argmax()) == token
                before = [*before, token]
            assert one.nats == pytest.approx(nats, abs=1e-4) and one.greedy == greedy
    with pytest.raises(UsageError, match="run on text"):
        runner.score([np.zeros((4, 4, 3))], ["what?"], [["a"]])


def test_prompts_are_read_once_and_as_whole_texts_are(llama: Path) -> None:
    runner = runner_of(llama)
    rows = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(3, 90, (length,), generator=rows).tolist()

    prompts = [ids(length) for length in (5, 9, 5, 1)]
    pairs = [(before, ids(length)) for before in prompts for length in (3, 1, 0, 7)]
    lengths: list[int] = []
    hook = runner.model.register_forward_pre_hook(
        lambda _, inputs, call: lengths.append(call["input_ids"].numel()), with_kwargs=True
    )
    once = likelihoods(runner.model, pairs, torch.clone, 64, prompts_once=True)
    hook.remove()
    # Three lengths of prompts: each prompt once, then each of its four continuations but the last token.
    assert sorted(lengths) == sorted([2 * 5, 9, 1, 8 * 6, 4 * 6, 4 * 6])
    for whole in (likelihoods(runner.model, pairs, torch.clone, size, prompts_once=False) for size in (1, 64)):
        for one, other in zip(once, whole, strict=True):
            assert one.nats == pytest.approx(other.nats, abs=1e-4) and one.greedy == other.greedy
    assert keeps_keys_and_values(runner.model)


def test_likelihood_of_known_logits() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, 1.0986123]])
    found = likelihood(logits, torch.tensor([0, 1]))
    assert found.nats == pytest.approx(np.log(0.5) + np.log(0.75)) and found.greedy is True
    assert not likelihood(logits, torch.tensor([0, 0])).greedy
