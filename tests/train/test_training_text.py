"""Plain language models in training, on a file of texts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from hf_zoo import TEXT
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from training_models import names_of, quick, split

from umcompress.data.training_file import TrainingFile
from umcompress.errors import UsageError
from umcompress.models.items import GenerationItem, ImageText, TextSample, UnderstandingItem
from umcompress.models.source import open_source
from umcompress.train.progress import CURVE, Curve
from umcompress.train.step import run_training

WORDS = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{number}" for number in range(90))]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 4 blocks with random weights, and `texts.jsonl` of unequal lengths beside it."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT)).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    hf.PreTrainedTokenizerFast(tokenizer_object=words, **marks).save_pretrained(folder)
    draw = random.Random(0)
    starts = [(draw.randrange(90), draw.randint(5, 14)) for _ in range(40)]
    texts = [" ".join(f"w{(start + place) % 90}" for place in range(length)) for start, length in starts]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "texts.jsonl").write_text(lines)
    return folder


def run(llama: Path, out: Path, **options: object) -> tuple[dict[str, torch.Tensor], Curve]:
    source = open_source(str(llama))
    model = split(source, None)
    planner = quick(**options)
    data = TrainingFile(data=llama / "texts.jsonl")
    values = run_training(planner, names_of(planner, model, source), model, source, data, out, lambda _: None, "texts")
    curve = Curve(out / CURVE)
    curve.read()
    return values, curve


def test_a_llama_learns_from_texts(llama: Path, tmp_path: Path) -> None:
    _, curve = run(llama, tmp_path, steps=40, batch_size=8, learning_rate=1e-2, losses={"task": 1, "distill_blocks": 0})
    losses = [row["losses"]["cross_entropy"] for row in curve.rows]
    assert losses[0] == pytest.approx(np.log(96), abs=0.3)
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_blocks_computed_again_change_nothing(llama: Path, tmp_path: Path) -> None:
    plain, curve = run(llama, tmp_path / "a", steps=2)
    again, _ = run(llama, tmp_path / "b", steps=2, gradient_checkpointing=True)
    assert {"cross_entropy", "logits", "blocks", "balance"} <= set(curve.rows[0]["losses"])
    for name in plain:
        torch.testing.assert_close(again[name], plain[name], rtol=0, atol=1e-6)


def test_rows_of_a_file_by_task(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "red.png")
    rows = [
        {"text": "one"}, {"prompt": "no picture"}, {"image": "red.png", "prompt": "red"},
        {"image": "red.png", "question": "which colour?"}, {"image": "red.png", "question": "which?", "answer": "red"},
    ]  # fmt: skip
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = TrainingFile(data=tmp_path / "data.jsonl")
    read = data.training_items("understanding", 2, 0)
    assert {type(item) for item in read} == {TextSample, UnderstandingItem}
    painted = data.training_items("generation", 3, 0)
    assert all(isinstance(item, ImageText) and item.prompt == "red" for item in painted) and len(painted) == 3
    # Where none has a picture, prompts alone are what some models learn from.
    (tmp_path / "data.jsonl").write_text('{"prompt": "no picture"}\n')
    (alone,) = TrainingFile(data=tmp_path / "data.jsonl").training_items("generation", 1, 0)
    assert isinstance(alone, GenerationItem) and alone.prompt == "no picture"
    (tmp_path / "data.jsonl").write_text('{"text": "one"}\n')
    with pytest.raises(UsageError, match="no row of it"):
        TrainingFile(data=tmp_path / "data.jsonl").training_items("generation", 1, 0)


def test_texts_of_unequal_lengths_add_up(llama: Path, tmp_path: Path) -> None:
    """Each alone, without padding, or all together: the same losses, and the same is learned."""
    whole, one = run(llama, tmp_path / "a", steps=2, batch_size=4, ema=0.0)
    parts, four = run(llama, tmp_path / "b", steps=2, batch_size=4, ema=0.0, gradient_accumulation=4)
    for a, b in zip(one.rows, four.rows, strict=True):
        assert {"cross_entropy", "logits", "blocks", "balance"} <= set(a["losses"])
        # A divergence of 1.5e-5 is a sum of float32 terms of some nats: it is right to about 3e-7, by processor.
        assert b["losses"] == pytest.approx(a["losses"], rel=2e-4, abs=3e-7)
        assert b["load"] == pytest.approx(a["load"], abs=1e-6)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=0, atol=3e-5)
