"""The held-out loss of each task against float64 models that read in another way; and what becomes of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_models import write_folder
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM
from unified_models import GRIDS, whole, write_unified

from umcompress.cli.main import main
from umcompress.documents.gate import Gate
from umcompress.documents.report import check_gate
from umcompress.documents.scores import Score, change, mean_score
from umcompress.evals.scenes.evaluation import Scenes
from umcompress.evals.task_loss import TaskLoss
from umcompress.extend import ImageText, TextSample, TrainingItem, UnderstandingItem
from umcompress.models.bagel.context import Cache
from umcompress.models.bagel.preprocess import vision_input
from umcompress.models.source import open_source

RNG = np.random.default_rng(0)
TIMES = (0.1, 0.6)
END_OF_TEXT = 2


def draws(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng((0, 17, place)) for place in range(count)]


def in_float64(folder: Path) -> tuple[Any, Any]:
    """Trainer and runner of one model."""
    source = open_source(str(folder))
    model = source.load().double()
    return source.family.trainer(model, source.folder), source.runner(model)


@torch.no_grad()
def test_answers_of_bagel_one_token_after_the_other(tiny_bagel: Path) -> None:
    trainer, runner = in_float64(tiny_bagel)
    model, marks = runner.model, runner.model.config.tokens
    items = Scenes().held_out_items("understanding", 5, 0)
    found = trainer.losses(items, draws(5), TIMES)
    assert found.shape == (5, 1) and found.dtype == torch.float64
    for item, loss in zip(items, found, strict=True):
        assert isinstance(item, UnderstandingItem)
        cache = Cache(1)
        model.absorb_vision(cache, [vision_input(item.image, model.config).double()])
        model.absorb_text(cache, [runner.tokenizer.ids(item.question)])
        read, wanted, nats = marks.bos_token_id, [*runner.tokenizer.ids(item.answer).tolist(), marks.eos_token_id], []
        for token in wanted:
            rows, _ = model.absorb_text(cache, [torch.tensor([read])], wrap=False)
            nats.append(-float(model.logits(rows)[0].log_softmax(-1)[token]))
            read = token
        assert float(loss) == pytest.approx(sum(nats) / len(nats), rel=1e-6)


@torch.no_grad()
def test_pictures_of_bagel_as_the_sampler_meets_them(tiny_bagel: Path) -> None:
    """The sampler's own velocity, after a prompt in the cache, against noise minus picture."""
    trainer, runner = in_float64(tiny_bagel)
    model, items = runner.model, Scenes().held_out_items("generation", 3, 0)
    found = trainer.losses(items, draws(3), TIMES)
    assert found.shape == (3, 2)
    shift = model.config.sampling.timestep_shift
    for item, draw, losses in zip(items, draws(3), found, strict=True):
        assert isinstance(item, ImageText)
        clean = model.latent_tokens(runner.latents([item.image])[0].float())
        noise = torch.from_numpy(draw.standard_normal(tuple(clean.shape), dtype=np.float32))
        cache = Cache(1)
        model.absorb_text(cache, [runner.tokenizer.ids(item.prompt)])
        for time, loss in zip(TIMES, losses, strict=True):
            at = shift * time / (1 + (shift - 1) * time)
            velocity = model.velocity(cache, (1 - at) * clean + at * noise, at, [runner.size])
            error = ((velocity.double() - (noise - clean).double()) ** 2).mean()
            assert float(loss) == pytest.approx(float(error), rel=1e-5)


@pytest.mark.parametrize("name", ["janus", "emu3"])
@torch.no_grad()
def test_models_whose_pictures_are_tokens(name: str, tmp_path: Path) -> None:
    """Prompts of unequal lengths; each code is predicted from all before it, read anew without a cache."""
    trainer, runner = in_float64(write_unified(name, tmp_path))
    height, width = GRIDS[name]
    pictures = [RNG.integers(0, 256, (height * 2, width * 2, 3), dtype=np.uint8) for _ in range(2)]
    prompts = ["a red dot", "x"]
    painted: list[TrainingItem] = [ImageText(image, text) for image, text in zip(pictures, prompts, strict=True)]
    found = trainer.losses(painted, draws(2), TIMES)
    assert found.shape == (2, 1) and found.dtype == torch.float64
    codes = runner.pictures.codes_of(pictures).tolist()
    for prompt, row, loss in zip(prompts, codes, found, strict=True):
        ids, nats = runner.pictures.prompt_ids(prompt)[0], []
        for place, code in enumerate(row):
            nats.append(-float(whole(runner, name, ids, row[:place], width).log_softmax(-1)[code]))
        assert float(loss) == pytest.approx(sum(nats) / len(nats), rel=1e-6)


@pytest.mark.parametrize("name", ["janus", "emu3"])
@torch.no_grad()
def test_answers_have_the_loss_of_transformers_for_labels(name: str, tmp_path: Path) -> None:
    trainer, runner = in_float64(write_unified(name, tmp_path))
    pictures = [RNG.integers(0, 256, size, dtype=np.uint8) for size in ((20, 30, 3), (16, 16, 3))]
    items = [UnderstandingItem(pictures[0], "why?", "no"), UnderstandingItem(pictures[1], "what?", "3 or so")]
    for item, loss in zip(items, trainer.losses(items, draws(2), TIMES), strict=True):
        text = f"<image>{item.question}"
        call = dict(runner.pictures.processor(text=[text], images=[[item.image]], return_tensors="pt"))
        more = torch.tensor([[*(ord(character) - 28 for character in item.answer), END_OF_TEXT]])
        labels = torch.cat([torch.full_like(call["input_ids"], -100), more], 1)
        call["input_ids"] = torch.cat([call["input_ids"], more], 1)
        call["attention_mask"] = torch.ones_like(call["input_ids"])
        call["pixel_values"] = call["pixel_values"].double()
        theirs = runner.model(**call, labels=labels, use_cache=False)
        assert float(loss) == pytest.approx(float(theirs.loss), rel=1e-5)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256,
    )
    folder = write_folder(LlamaForCausalLM(config), tmp_path_factory.mktemp("llama"))
    texts = ["one two three", "a longer text about nothing", "hm!", "the end of it all", "more", "and more"]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


@torch.no_grad()
def test_texts_of_a_llama_one_at_a_time(llama: Path) -> None:
    """Unequal lengths share a batch; transformers reads each by itself.  The order of the items is kept."""
    trainer, runner = in_float64(llama)
    texts = ["a longer text about nothing", "hm!", "one two three"]
    found = trainer.losses([TextSample(text) for text in texts], draws(3), TIMES)
    for text, loss in zip(texts, found, strict=True):
        ids = torch.tensor([runner.tokenizer.ids(text)])
        chances = runner.model(ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        assert float(loss) == pytest.approx(float(-chances.gather(-1, ids[0, 1:, None]).mean()), rel=1e-9)


def test_the_score_keeps_the_items_of_a_users_file(llama: Path, tmp_path: Path) -> None:
    source = open_source(str(llama))
    runner = source.runner(source.load())
    evaluation = TaskLoss(data=llama / "texts.jsonl")
    evaluation.check()
    evaluation.suits(runner)
    score = evaluation.run(runner, tmp_path, lambda _: None)["understanding"]
    rows = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert [row["losses"][0] for row in rows] == list(score.items) and score.n == 6 and score.lower_is_better
    assert score.value == pytest.approx(sum(score.items) / 6) and not score.by_kind
    assert {row["item"] for row in rows} >= {"hm!", "more"}
    again = evaluation.run(runner, tmp_path, lambda _: None)["understanding"]
    assert again.items == score.items and again.items_of == score.items_of
    other = TaskLoss(data=llama / "texts.jsonl", limit=3).run(runner, tmp_path, lambda _: None)["understanding"]
    assert other.n == 3 and other.items_of != score.items_of


def test_a_file_without_a_task_of_the_model_is_refused(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    rows = tmp_path / "painted.jsonl"
    rows.write_text(json.dumps({"image": "a.png", "prompt": "a dot"}) + "\n")
    assert main(["evaluate", str(llama), "--evaluation", f"task_loss:data={rows}"]) == 2
    assert "it has nothing for understanding" in capsys.readouterr().err


def loss_of(values: list[float], of: str = "these") -> Score:
    return Score(**mean_score(values).model_dump(), lower_is_better=True, items=tuple(values), items_of=of)


def test_a_change_of_the_same_items_has_a_paired_interval() -> None:
    old, new = [1.0, 2.0, 3.0, 4.0], [1.2, 2.1, 3.3, 4.2]
    found = change(loss_of(new), loss_of(old))
    differences = [0.2, 0.1, 0.3, 0.2]
    half = 3.18245 * math.sqrt(sum((d - 0.2) ** 2 for d in differences) / 3 / 4)
    assert found.paired and found.beyond_noise and found.value == pytest.approx(0.2)
    assert found.low == pytest.approx(0.2 - half) and found.high == pytest.approx(0.2 + half)
    assert found.relative == pytest.approx(0.2 / 2.5)
    others = change(loss_of(new, "others"), loss_of(old))
    assert not others.paired and not others.beyond_noise
    same = change(loss_of(old), loss_of(old))
    assert (same.low, same.high, same.beyond_noise) == (0, 0, False)


def test_a_gate_on_a_loss_limits_its_rise() -> None:
    low, high = {"generation": loss_of([1.0, 2.0])}, {"generation": loss_of([1.2, 2.2])}
    gate = Gate(generation_drop=0.1)
    (worse,) = check_gate(gate, high, low)  # type: ignore[arg-type]
    (better,) = check_gate(gate, low, high)  # type: ignore[arg-type]
    assert worse.drop == pytest.approx(0.2) and not worse.passed
    assert better.drop == pytest.approx(-0.2) and better.passed
