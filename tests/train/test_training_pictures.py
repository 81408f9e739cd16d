"""Vision-language models in training, against transformers' own losses for labels and plain forwards, item by item."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_models import write_recipe
from PIL import Image
from seeing_models import KINDS, by_hand, write_seeing
from torch import Tensor
from training_models import Killed, names_of, quick, split
from transformers import AutoModelForImageTextToText

from umcompress.cli.main import main
from umcompress.data.training_file import TrainingFile
from umcompress.documents.training_options import LossWeights
from umcompress.models.hf.ask.text_runner import TransformersRunner
from umcompress.models.hf.ask.tokenizer import ids_after_question
from umcompress.models.items import TextSample, TrainingItem, UnderstandingItem
from umcompress.models.source import Source, open_source
from umcompress.passes.adapt import Adapt
from umcompress.passes.router_train import RouterTrain
from umcompress.train.progress import CURVE, Curve
from umcompress.train.step import run_training

RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, size, dtype=np.uint8) for size in ((20, 30, 3), (16, 16, 3), (33, 14, 3))]
QUESTIONS, ANSWERS = ["what is it?", "how many?", "hm"], ["a dot", "3", "no idea!"]
END = 2
TRAINED = ("qwen2_5_vl", "llava", "internvl")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write_seeing(name, tmp_path_factory.mktemp(name)) for name in KINDS}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions about three pictures with answers of unequal lengths, and a text."""
    folder = tmp_path_factory.mktemp("rows")
    found: list[dict[str, str]] = []
    for place, picture in enumerate(PICTURES):
        Image.fromarray(picture).save(folder / f"{place}.png")
        found.append({"image": f"{place}.png", "question": QUESTIONS[place], "answer": ANSWERS[place]})
    (folder / "pictures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    (folder / "texts.jsonl").write_text('{"text": "some text"}\n{"text": "other words"}\n')
    (folder / "mixed.jsonl").write_text(json.dumps(found[0]) + '\n{"text": "some text"}\n')
    return folder


def ids_of(text: str) -> list[int]:
    return [ord(character) - 28 for character in text]


def with_labels(name: str, place: int, dtype: torch.dtype) -> dict[str, Any]:
    """An item as transformers is given it: the processor's output, the answer and its end, labels for these alone."""
    made = dict(by_hand(name, [PICTURES[place]], QUESTIONS[place]))
    more = [*ids_of(ANSWERS[place]), END]
    labels = torch.tensor([[-100] * made["input_ids"].shape[1] + more])
    plain = {"input_ids": more, "attention_mask": [1] * len(more)}
    for key in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"):
        if key in made:
            # Text is 0 everywhere but in PaliGemma, where answers are 1.
            after = plain.get(key, [int(name == "paligemma")] * len(more))
            made[key] = torch.cat([made[key], torch.tensor([after], dtype=made[key].dtype)], dim=1)
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in made.items()} | {"labels": labels}


def items() -> list[TrainingItem]:
    return [UnderstandingItem(*three) for three in zip(PICTURES, QUESTIONS, ANSWERS, strict=True)]


def train(
    planner: Any, folder: Path, data: Path | TrainingFile, out: Path, model: Any = None, names: Any = None
) -> tuple[dict[str, Tensor], Curve]:
    source = open_source(str(folder))
    model = source.load() if model is None else model
    names = names_of(planner, model, source) if names is None else names
    file = data if isinstance(data, TrainingFile) else TrainingFile(data=data)
    values = run_training(planner, names, model, source, file, out, lambda _: None, "training")
    curve = Curve(out / CURVE)
    curve.read()
    return values, curve


def plain(folder: Path) -> Any:
    """As transformers opens it, without this project."""
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def surprise(model: Any, call: dict[str, Any]) -> Tensor:
    """Cross-entropy of each answer token in float64, from a plain forward; in the mean what transformers says."""
    call = dict(call)
    labels = call.pop("labels")[0, 1:]
    chances = model(**call, use_cache=False).logits[0, :-1].double().log_softmax(-1)
    found = -chances.gather(-1, labels.clamp(min=0)[:, None])[:, 0][labels >= 0]
    # Labels have float32 losses there.
    theirs = model(**call, labels=torch.cat([labels[:1], labels])[None], use_cache=False).loss
    assert float(found.mean()) == pytest.approx(float(theirs), rel=1e-5)
    return found


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_the_loss_of_an_item_is_that_of_transformers_for_labels(name: str, folders: dict[str, Path]) -> None:
    """In float64, alone and among others, on a model that transformers itself made."""
    source = open_source(str(folders[name]))
    ours: Any = source.load().double()
    theirs = plain(folders[name]).double()
    for model in (ours, theirs):
        model.set_experts_implementation("eager")
    trainer = source.family.trainer(ours, source.folder)
    wanted = []
    for place, item in enumerate(items()):
        wanted.append(surprise(theirs, with_labels(name, place, torch.float64)))
        alone = trainer.forward(trainer.batch([item], [])).losses["cross_entropy"]
        assert len(alone) == len(ANSWERS[place]) + 1
        torch.testing.assert_close(alone, wanted[-1], rtol=1e-9, atol=1e-9)
    text = torch.tensor([ids_of("some text")])
    wanted.append(surprise(theirs, {"input_ids": text, "labels": text}))
    batch = trainer.batch([*items(), TextSample("some text")], [])
    together = trainer.forward(batch).losses["cross_entropy"]
    assert batch.rows == {"cross_entropy": len(together), "logits": len(together)}
    torch.testing.assert_close(together.sort().values, torch.cat(wanted).sort().values, rtol=1e-9, atol=1e-9)


def test_distillation_by_hand(folders: dict[str, Path], rows: Path, tmp_path: Path) -> None:
    """Of three items of unequal lengths in one batch, each read by itself here: no padding is taught."""
    folder = folders["llava"]
    student, teacher = split(open_source(str(folder)), "shared"), plain(folder)
    stack = open_source(str(folder)).family.stacks(student)["main"]
    both: list[Any] = [student, teacher]
    heard: dict[Any, dict[int, list[Tensor]]] = {model: {} for model in both}
    hooks = [
        block.register_forward_hook(lambda _, __, out, m=model, i=index: heard[m].setdefault(i, []).append(out[0]))
        for model in both for index, block in enumerate(model.get_submodule(stack))
    ]  # fmt: skip
    nats, divergence = [], 0.0
    for place in range(3):
        call = with_labels("llava", place, torch.float32)
        labels = call.pop("labels")[0, 1:]
        with torch.no_grad():
            both = [model(**call, use_cache=False).logits[0, :-1][labels >= 0] for model in (student, teacher)]
        mine, wanted = (logits.log_softmax(-1) for logits in both)
        nats.append(-mine.gather(-1, labels[labels >= 0][:, None]))
        divergence += float((wanted.exp() * (wanted - mine)).sum())
    for hook in hooks:
        hook.remove()
    terms = []
    for index in range(4):
        mine, wanted = (torch.cat(heard[model][index]) for model in (student, teacher))
        terms.append(float((mine - wanted).square().mean() / wanted.double().var(0, correction=0).mean()))
    planner = quick(steps=1, batch_size=3, source=None)
    _, curve = train(planner, folder, rows / "pictures.jsonl", tmp_path, student)
    losses = curve.rows[0]["losses"]
    tokens = torch.cat(nats)
    assert losses["cross_entropy"] == pytest.approx(float(tokens.mean()), rel=1e-5)
    assert losses["logits"] == pytest.approx(divergence / len(tokens), rel=1e-4)
    assert losses["blocks"] == pytest.approx(sum(terms) / 4, rel=1e-4)
    whole = 0.1 * losses["cross_entropy"] + losses["logits"] + losses["blocks"] + 0.001 * losses["balance"]
    assert losses["loss"] == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl"])
def test_parts_add_up_to_the_whole_batch(name: str, folders: dict[str, Path], rows: Path, tmp_path: Path) -> None:
    """Alone there is no padding, together there is: neither losses nor what is learned know of it."""
    found = []
    for parts in (1, 4):
        model = split(open_source(str(folders[name])), "shared")
        planner = quick(batch_size=4, gradient_accumulation=parts, steps=2, ema=0.0)
        data = rows / ("mixed.jsonl" if name == "internvl" else "pictures.jsonl")
        found.append(train(planner, folders[name], data, tmp_path / str(parts), model))
    (whole, one), (summed, four) = found
    for a, b in zip(one.rows, four.rows, strict=True):
        assert {"cross_entropy", "logits", "blocks", "balance"} <= a["losses"].keys()
        assert b["losses"] == pytest.approx(a["losses"], rel=2e-4) and b["load"] == pytest.approx(a["load"], abs=1e-6)
    for key in whole:
        torch.testing.assert_close(summed[key], whole[key], rtol=0, atol=3e-5)


@pytest.mark.parametrize("name", TRAINED)
def test_routers_learn_from_pictures_and_go_on_to_the_same_bits(
    name: str, folders: dict[str, Path], rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loaded = Source.load, list[Any]()

    def noted(source: Source) -> Any:
        loaded.append(load(source))
        return loaded[-1]

    monkeypatch.setattr(Source, "load", noted)
    files = {path.name: path.read_bytes() for path in folders[name].iterdir()}
    planner = RouterTrain(steps=12, batch_size=3, warm_up=0, learning_rate=0.03, ema=0.0, checkpoint_every=2)
    model = split(open_source(str(folders[name])), "shared")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    values, curve = train(planner, folders[name], rows / "pictures.jsonl", tmp_path / "whole", model)
    assert all(key.endswith("gate.weight") for key in values) and len(values) == 4
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) == (key not in values), key
    student, teacher = loaded
    unpruned = plain(folders[name]).state_dict()
    assert student is model and teacher.state_dict().keys() == unpruned.keys()
    assert all(torch.equal(value, unpruned[key]) for key, value in teacher.state_dict().items())
    losses = [row["losses"]["loss"] for row in curve.rows]
    assert np.mean(losses[-3:]) < 0.95 * np.mean(losses[:3])
    with pytest.raises(KeyboardInterrupt):
        killed = Killed(data=rows / "pictures.jsonl", asked=tmp_path / "asked")
        train(planner, folders[name], killed, tmp_path / "again", split(open_source(str(folders[name])), "shared"))
    assert len((tmp_path / "again" / CURVE).read_text().splitlines()) == 3
    model = split(open_source(str(folders[name])), "shared")
    again, resumed = train(planner, folders[name], rows / "pictures.jsonl", tmp_path / "again", model)
    assert all(torch.equal(values[key], again[key]) for key in values)
    assert [row["losses"] for row in resumed.rows] == [row["losses"] for row in curve.rows]
    assert {path.name: path.read_bytes() for path in folders[name].iterdir()} == files


@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3"])
def test_a_named_vision_tower_learns_by_the_gradient_of_transformers(
    name: str, folders: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    """The length of the first step's gradient; and texts go past the tower, which is no error."""
    theirs = plain(folders[name])
    tower = "visual.blocks" if name == "qwen2_5_vl" else "vision_tower.encoder"
    named = [key for key, _ in theirs.named_parameters() if tower in key]
    tokens = 0
    for place in range(3):
        call = with_labels(name, place, torch.float32)
        count = int((call["labels"] >= 0).sum())
        (theirs(**call, use_cache=False).loss * count).backward()
        tokens += count
    parts = [theirs.get_parameter(key).grad for key in named]
    length = float(torch.stack([part.norm() for part in parts if part is not None]).norm()) / tokens
    only = LossWeights(task=1, distill_output=0, distill_blocks=0, balance=0)
    planner = Adapt(parameters=(f"*{tower}*",), steps=1, batch_size=3, warm_up=0, losses=only, learning_rate=0.01)
    model: Any = open_source(str(folders[name])).load()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    values, curve = train(planner, folders[name], rows / "pictures.jsonl", tmp_path / "a", model)
    assert set(values) == set(named)
    assert curve.rows[0]["norm"] == pytest.approx(length, rel=1e-3) and length > 1e-4
    assert all(torch.equal(value, before[key]) == (key not in values) for key, value in model.state_dict().items())
    planner = planner.model_copy(update={"batch_size": 1, "steps": 6})
    _, curve = train(planner, folders[name], rows / "mixed.jsonl", tmp_path / "b")
    assert {row["norm"] == 0 for row in curve.rows} == {True, False}


@torch.no_grad()
def test_what_is_decoded_next_does_not_move_by_pictures_of_before(folders: dict[str, Path]) -> None:
    """Qwen's models keep for each row of a batch how far its pictures moved positions."""
    source = open_source(str(folders["qwen2_5_vl"]))
    model: Any = source.load()
    trainer = source.family.trainer(model, source.folder)
    trainer.forward(trainer.batch(items(), []))
    assert model.model.rope_deltas.shape == (3, 1)
    assert TransformersRunner(model, source.folder).workload("understanding").seconds > 0


def test_an_answer_ends_as_the_chat_template_ends_it() -> None:
    class Letters:
        eos_token_id = END

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            assert not add_special_tokens
            return {"input_ids": ids_of(text)}

    asked = "user:why?;model:"
    assert ids_after_question(Letters(), "so") == [*ids_of("so"), END]
    assert ids_after_question(Letters(), "so", "user:why?;model: so<end>\n", asked) == ids_of(" so<end>")
    assert ids_after_question(Letters(), "so", "user:why?;model: so ", asked) == [*ids_of(" so"), END]
    assert ids_after_question(Letters(), "so", "user:why?;so;", asked) == [*ids_of("so"), END]


# -- through the command line -----------------------------------------------------------------------------------------

SPLIT = {"pass": "moe_split", "component": "shared", "experts": 8, "active": 4, "router": "zero", "repair": "none"}


def recipe(folder: Path, model: Path, *steps: dict[str, Any], **keys: Any) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    return str(write_recipe(folder, model, *steps, evaluate=[], **keys))


def test_a_recipe_splits_and_trains_on_pictures(folders: dict[str, Path], rows: Path, tmp_path: Path) -> None:
    data = str(rows / "pictures.jsonl")
    steps = [
        SPLIT, {"pass": "router_train", "steps": 20, "batch_size": 3, "warm_up": 0, "learning_rate": 0.05, "data": data}
    ]  # fmt: skip
    path = recipe(tmp_path, folders["qwen2_5_vl"], *steps, calibration={"data": data, "samples": 3})
    assert main(["plan", path]) == 0
    assert main(["apply", path, "-o", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["checkpoint"]["reload_equal"] is True
    training = report["steps"][2]["training"]
    assert training["last"]["loss"] < training["first"]["loss"] and "cross_entropy" in training["last"]
