"""Janus, Emu3 and Chameleon in training: answers, and pictures as tokens, against forwards one token at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from training_models import Killed, names_of, quick, split
from unified_models import GRIDS, NAMES, whole, write_unified

from umcompress.data.training_file import TrainingFile
from umcompress.models.items import ImageText, TrainingItem, UnderstandingItem
from umcompress.models.source import open_source
from umcompress.passes.router_train import RouterTrain
from umcompress.train.progress import CURVE, Curve
from umcompress.train.step import run_training

RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, size, dtype=np.uint8) for size in ((20, 30, 3), (16, 16, 3), (9, 14, 3))]
PROMPTS, ANSWERS = ["a red dot", "two cats on a mat", "x"], ["no", "yes!", "3"]
PAINTERS = ("janus", "emu3")
END = 2


class Drawn:
    """Leaves the prompt out, or not."""

    def __init__(self, number: float) -> None:
        self.number = number

    def random(self) -> float:
        return self.number


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write_unified(name, tmp_path_factory.mktemp(name)) for name in NAMES}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    lines: list[dict[str, str]] = []
    for place, picture in enumerate(PICTURES):
        Image.fromarray(picture).save(folder / f"{place}.png")
        lines.append({"image": f"{place}.png", "question": "what?", "answer": ANSWERS[place]})
        lines.append({"image": f"{place}.png", "prompt": PROMPTS[place]})
    (folder / "both.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def opened(folder: Path) -> tuple[Any, Any]:
    source = open_source(str(folder))
    model = source.load().double()
    return source.family.trainer(model, source.folder), source.family.runner(model, source.folder)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_answers_have_the_loss_of_transformers_for_labels(name: str, folders: dict[str, Path]) -> None:
    trainer, runner = opened(folders[name])
    items = [UnderstandingItem(p, "why?", a) for p, a in zip(PICTURES, ANSWERS, strict=True)]
    wanted = []
    for item in items:
        processor = runner.pictures.processor
        call = dict(processor(text=["<image>why?"], images=[[item.image]], return_tensors="pt"))
        more = torch.tensor([[*(ord(character) - 28 for character in item.answer), END]])
        asked = call["input_ids"].shape[1]
        call["input_ids"] = torch.cat([call["input_ids"], more], 1)
        call["attention_mask"] = torch.ones_like(call["input_ids"])
        call["pixel_values"] = call["pixel_values"].double()
        labels = call["input_ids"].clone()
        labels[:, :asked] = -100
        alone = trainer.forward(trainer.batch([item], [Drawn(1)])).losses["cross_entropy"]
        theirs = runner.model(**call, labels=labels, use_cache=False)
        assert len(alone) == more.shape[1] and float(alone.mean()) == pytest.approx(float(theirs.loss), rel=1e-5)
        chances = theirs.logits[0, asked - 1 : -1].double().log_softmax(-1)
        wanted.append(-chances.gather(-1, more[0][:, None])[:, 0])
    together = trainer.forward(trainer.batch(items, [Drawn(1)] * 3)).losses["cross_entropy"]
    torch.testing.assert_close(together.sort().values, torch.cat(wanted).sort().values, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PAINTERS)
@torch.no_grad()
def test_pictures_have_the_loss_of_their_codes_one_after_the_other(name: str, folders: dict[str, Path]) -> None:
    """Prompts of unequal lengths share a batch; one is left out. What is read before each code is read anew here."""
    trainer, runner = opened(folders[name])
    height, width = GRIDS[name]
    # One colour for each code, so that the codes differ.
    colours = [RNG.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in PROMPTS]
    images = [each.repeat(2, axis=0).repeat(2, axis=1) for each in colours]
    items: list[TrainingItem] = [ImageText(image, text) for image, text in zip(images, PROMPTS, strict=True)]
    batch = trainer.batch(items, [Drawn(0.5), Drawn(0.05), Drawn(0.5)])
    found = trainer.forward(batch)
    assert set(found.losses) == {"codes"} and batch.rows == dict.fromkeys(("codes", "code_logits"), 3 * height * width)
    losses = found.losses["codes"].view(3, height * width)
    rule = runner.pictures.processor.image_processor
    for place, image in enumerate(images):
        pixels = (torch.tensor(image).double() / 255 - torch.tensor(rule.image_mean)) / torch.tensor(rule.image_std)
        pixels = pixels.permute(2, 0, 1)[None]
        vision = runner.model.model.vqmodel
        encoded = vision.encode(pixels) if name == "janus" else vision.encode(pixels, [[height * 2, width * 2]])
        codes = torch.as_tensor(encoded.image_tokens if name == "janus" else encoded.image_tokens[0]).flatten().tolist()
        assert len(codes) == height * width and len(set(codes)) > 1
        asked, without = runner.pictures.prompt_ids(PROMPTS[place])
        ids = without if place == 1 else asked
        for step in (0, 1, width - 1, width, width + 1, height * width - 1):
            chances = whole(runner, name, ids, codes[:step], width).log_softmax(-1)
            assert float(losses[place, step]) == pytest.approx(-float(chances[codes[step]]), rel=1e-6)


@pytest.mark.parametrize("name", PAINTERS)
def test_pictures_of_other_sizes_are_cut_to_what_is_painted(name: str, folders: dict[str, Path]) -> None:
    """A picture that is too wide, with stripes at its sides: what is left is the middle. And back again."""
    _, runner = opened(folders[name])
    height, width = (2 * side for side in GRIDS[name])
    middle = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    stripes = np.full((height, 10, 3), 255, np.uint8)
    values = runner.pictures.to_values(np.concatenate([stripes, middle, stripes], 1))
    assert np.abs(runner.pictures.to_pixels(values).astype(int) - middle).max() <= 1
    assert runner.pictures.to_values(np.zeros((200, 100, 3), np.uint8)).shape == (3, height, width)


def train(planner: Any, folder: Path, data: Any, out: Path) -> tuple[dict[str, Tensor], Curve]:
    source = open_source(str(folder))
    model = split(source, "shared")
    names = names_of(planner, model, source)
    file = data if isinstance(data, TrainingFile) else TrainingFile(data=data)
    values = run_training(planner, names, model, source, file, out, lambda _: None, "training")
    curve = Curve(out / CURVE)
    curve.read()
    return values, curve


def test_distillation_of_codes_by_hand(folders: dict[str, Path], rows: Path, tmp_path: Path) -> None:
    """The divergence from the unpruned model's chances, each code with what is before it read anew."""
    source = open_source(str(folders["janus"]))
    runners: list[Any] = [source.runner(model) for model in (source.load(), split(source, "shared"))]
    pictures = runners[0].pictures
    data = TrainingFile(data=rows / "both.jsonl")
    drawn = data.training_items("generation", 3, int(np.random.default_rng((0, 2, 0, 0)).integers(2**31)))
    wanted = 0.0
    for index, item in enumerate(drawn):
        assert isinstance(item, ImageText)
        left_out = np.random.default_rng((0, 1, 0, index)).random() < 0.1
        ids = pictures.prompt_ids(item.prompt)[int(left_out)]
        codes = pictures.codes_of([item.image])[0].tolist()
        for step in range(16):
            with torch.no_grad():
                teacher, student = (
                    whole(runner, "janus", ids, codes[:step], 4).double().log_softmax(-1) for runner in runners
                )
            wanted += float((teacher.exp() * (teacher - student)).sum()) / 48
    planner = quick(steps=1, batch_size=3, tasks={"generation": 1})
    _, curve = train(planner, folders["janus"], data, tmp_path)
    assert curve.rows[0]["losses"]["code_logits"] == pytest.approx(wanted, rel=1e-4) and wanted > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_routers_learn_from_both_tasks_and_go_on_to_the_same_bits(
    name: str, folders: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    planner = RouterTrain(steps=12, batch_size=4, warm_up=0, learning_rate=0.03, ema=0.0, checkpoint_every=2)
    values, curve = train(planner, folders[name], rows / "both.jsonl", tmp_path / "whole")
    painted = {"codes", "code_logits"} if name in PAINTERS else set()
    assert set(curve.rows[0]["losses"]) == {"cross_entropy", "logits", "blocks", "balance", "loss"} | painted
    losses = [row["losses"]["loss"] for row in curve.rows]
    assert np.mean(losses[-3:]) < 0.97 * np.mean(losses[:3])
    killed = Killed(data=rows / "both.jsonl", asked=tmp_path / "asked")
    with pytest.raises(KeyboardInterrupt):
        train(planner, folders[name], killed, tmp_path / "again")
    assert len((tmp_path / "again" / CURVE).read_text().splitlines()) == 3
    again, resumed = train(planner, folders[name], rows / "both.jsonl", tmp_path / "again")
    assert all(torch.equal(values[key], again[key]) for key in values)
    assert [row["losses"] for row in resumed.rows] == [row["losses"] for row in curve.rows]


@pytest.mark.parametrize("name", PAINTERS)
def test_parts_add_up_to_the_whole_batch(name: str, folders: dict[str, Path], rows: Path, tmp_path: Path) -> None:
    found = []
    for parts in (1, 2):
        planner = quick(batch_size=4, gradient_accumulation=parts, steps=2, ema=0.0)
        found.append(train(planner, folders[name], rows / "both.jsonl", tmp_path / str(parts)))
    (values, one), (summed, two) = found
    for a, b in zip(one.rows, two.rows, strict=True):
        assert b["losses"] == pytest.approx(a["losses"], rel=2e-4)
    for key in values:
        torch.testing.assert_close(summed[key], values[key], rtol=0, atol=3e-5)
