"""Calibration data from a file: what is read, what is drawn, what is refused, and the warning about overlap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import benchmark_data as data
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from tiny_bagel import write_recipe

from umcompress.cli.main import main
from umcompress.data.calibration_file import CalibrationFile
from umcompress.data.overlap import Overlap, overlap
from umcompress.errors import UsageError
from umcompress.evals.answers._questions import QuestionBenchmark
from umcompress.evals.answers.mmbench import MmBench
from umcompress.evals.answers.mme import Mme
from umcompress.evals.answers.mmmu import Mmmu
from umcompress.evals.answers.mmvp import Mmvp
from umcompress.evals.answers.pope import Pope
from umcompress.extend.evaluation_base import ScoredItem
from umcompress.models.items import GenerationItem, TextSample, UnderstandingItem
from umcompress.recipe.recipe import Calibration


def write_rows(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_prompts_a_line(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red cup\n\n  two dogs \nthree cats\n", encoding="utf-8")
    source = CalibrationFile(data=tmp_path / "prompts.txt")
    items = source.calibration_items("generation", 2, seed=1)
    assert items == source.calibration_items("generation", 2, seed=1)
    assert {item.prompt for item in items} < {"a red cup", "two dogs", "three cats"}
    assert all(isinstance(item, GenerationItem) for item in items) and items[0].seed != items[1].seed
    seen = {source.calibration_items("generation", 1, seed)[0].prompt for seed in range(20)}
    assert len(seen) == 3


def test_questions_about_pictures_and_texts(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    data.picture(3).save(tmp_path / "images" / "a.png")
    path = write_rows(
        tmp_path / "items.jsonl", {"prompt": "a cup"}, {"image": "images/a.png", "question": "what?", "answer": "red"},
        {"image": "images/a.png", "question": "where?"}, {"text": "Once upon a time."},
    )  # fmt: skip
    items = CalibrationFile(data=path).calibration_items("understanding", 3, seed=0)
    by_text = {getattr(item, "question", getattr(item, "text", "")): item for item in items}
    red = by_text["what?"]
    assert isinstance(red, UnderstandingItem) and red.answer == "red" and by_text["where?"].answer == ""
    assert np.array_equal(np.asarray(red.image), np.asarray(data.picture(3)))
    assert by_text["Once upon a time."] == TextSample("Once upon a time.")


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("x.jsonl", '{"prompt": "a"}\n{"promt": "b"}\n', "line 2"),
        ("x.jsonl", '{"prompt": "a"}\n{"prompt"\n', "line 2"),
        ("x.jsonl", '{"image": "a.png"}\n', "line 1"),
        ("x.jsonl", '{"prompt": 3}\n', "line 1"),
        ("x.jsonl", "[1]\n", "line 1"),
        ("x.txt", "one\n", "1 of its 1 rows are for generation"),
        ("x.jsonl", '{"image": "a.png", "question": "q"}\n' * 2, "0 of its 2 rows are for generation"),
        ("none.txt", None, "no such file"),
    ],
)
def test_what_does_not_suit_is_explained(tmp_path: Path, name: str, text: str | None, found: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=found):
        CalibrationFile(data=tmp_path / name).calibration_items("generation", 2, 0)


def test_a_picture_that_is_none(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.jsonl", {"image": "gone.png", "question": "q"})
    with pytest.raises(UsageError, match=r"gone\.png"):
        CalibrationFile(data=path).calibration_items("understanding", 1, 0)


def test_a_source_and_a_file_are_one_too_many() -> None:
    with pytest.raises(ValidationError, match="leave one out"):
        Calibration(source="scenes", data=Path("x.txt"))


# -- overlap ------------------------------------------------------------------------------------------------------


def test_texts_compare_without_case_and_punctuation() -> None:
    mine = [ScoredItem("A red cup."), ScoredItem("a  red\ncup"), ScoredItem("a blue cup")]
    assert overlap(mine, [ScoredItem("a red, cup!")]) == Overlap(same=2, pictures=0)
    assert overlap(mine, []) == Overlap(0, 0)


def test_a_question_is_the_same_only_about_the_same_picture(tmp_path: Path) -> None:
    first, second = data.encoded(1), data.encoded(2)
    again = tmp_path / "again.bmp"
    data.picture(1).save(again)
    mine = [
        ScoredItem("Is it red?", (first,)), ScoredItem("Is it red?", (second,)), ScoredItem("Where?", (first,)),
        ScoredItem("is it red", (again,)), ScoredItem("Is it red?"),
    ]  # fmt: skip
    # the second shows another picture; the third the same one with another question; the fourth its pixels
    assert overlap(mine, [ScoredItem("Is it red?", (first,))]) == Overlap(same=2, pictures=1)


def test_benchmarks_say_what_they_score(tmp_path: Path) -> None:
    """A calibration file made of a benchmark's own first questions is found out, whatever the prompt adds."""
    folders: dict[type[QuestionBenchmark], Path] = {
        Mme: data.write_mme(tmp_path / "mme", 1), Pope: data.write_pope(tmp_path / "pope"),
        Mmvp: data.write_mmvp(tmp_path / "mmvp"), Mmmu: data.write_mmmu(tmp_path / "mmmu"),
        MmBench: data.write_mmbench(tmp_path / "mmbench.tsv"),
    }  # fmt: skip
    raw: dict[type[QuestionBenchmark], str] = {
        Mme: "Is this Yes in existence? Please answer yes or no.", Pope: "is there a random 0 in the image",
        Mmvp: "Are the wings, of 0, open?", Mmmu: "Which of these is shown in <image 1>?",
        MmBench: "What is shown in 0?",
    }  # fmt: skip
    for kind, folder in folders.items():
        scored = list(kind(data=folder).scored_items("understanding"))
        copied = next(item for item in scored if item.text.lower().startswith(raw[kind].lower()[:20]))
        picture = tmp_path / f"{kind.name}.png"
        source = copied.pictures[0]
        picture.write_bytes(source if isinstance(source, bytes) else source.read_bytes())
        path = write_rows(tmp_path / f"{kind.name}.jsonl", {"image": picture.name, "question": raw[kind]},
                          {"image": picture.name, "question": "What else is there?"})  # fmt: skip
        lines = CalibrationFile(data=path).overlaps(("understanding", 2, 0), [kind(data=folder)])
        assert len(lines) == 1, kind
        assert f"1 of 2 calibration items are scored by {kind.name}" in lines[0]
        assert f"1 of 2 more show a picture that {kind.name} asks about" in lines[0]
        assert kind(data=folder).scored_items("generation") is not None
        assert not list(kind(data=folder).scored_items("generation"))


def test_the_run_warns_with_the_count(
    tiny_bagel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = data.write_pope(tmp_path / "pope")
    image = folder / "val2014" / "COCO_val2014_000000000000.jpg"
    Image.new("RGB", (32, 32), "red").save(tmp_path / "other.png")
    question = "Is there a popular 0 in the image?"
    path = write_rows(
        tmp_path / "mine.jsonl", {"image": str(image), "question": question, "answer": "yes"},
        {"image": "other.png", "question": question},
    )  # fmt: skip
    step = {"pass": "channel_prune", "component": "understanding", "keep_ratio": 0.5}
    calibration = {"task": "understanding", "samples": 2, "data": str(path)}
    evaluate = [{"pope": {"data": str(folder)}}]
    recipe = write_recipe(tmp_path, tiny_bagel, step, evaluate=evaluate, calibration=calibration)
    assert main(["apply", str(recipe), "-o", str(tmp_path / "run"), "--format", "json"]) == 0
    told = capsys.readouterr()
    assert "warning: 1 of 2 calibration items are scored by pope:" in told.err
    assert json.loads(told.out)["recipe"]["calibration"]["data"] == str(path)
    calibration["samples"] = 3
    recipe = write_recipe(tmp_path, tiny_bagel, step, evaluate=evaluate, calibration=calibration)
    assert main(["apply", str(recipe), "-o", str(tmp_path / "few")]) == 2
    assert "set samples: 2, or give more" in capsys.readouterr().err


SOURCE = """
from typing import ClassVar
from umcompress.extend import Evaluation, PlanError

class Mine(Evaluation):
    name: ClassVar[str] = "mine"

    def run(self, runner, out, progress):
        return {}

    def calibration_items(self, task, samples, seed):
        raise PlanError("items", f"mine was asked for {samples} of {task}")
"""


@pytest.mark.parametrize("more", [(), ("--out-of-core",)])
def test_a_source_by_path_is_relative_to_the_recipe(
    tiny_bagel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
) -> None:  # fmt: skip
    (tmp_path / "recipes").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "recipes" / "mine.py").write_text(SOURCE, encoding="utf-8")
    step = {"pass": "channel_prune", "component": "understanding", "keep_ratio": 0.5}
    calibration = {"source": "mine.py:Mine", "samples": 3}
    recipe = write_recipe(tmp_path / "recipes", tiny_bagel, step, evaluate=[], calibration=calibration)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["apply", str(recipe), "-o", "out", *more]) == 2
    assert "mine was asked for 3 of understanding" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["calibration", "training"])
def test_a_file_is_sought_beside_the_recipe(
    key: str, tiny_bagel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that lies in the current folder alone is named as the recipe has to say it."""
    folder, here = tmp_path / "recipes", tmp_path / "elsewhere"
    folder.mkdir()
    here.mkdir()
    for file in (folder / "mine.jsonl", here / "other.jsonl"):
        file.write_text(f'{{"{"text" if key == "training" else "prompt"}": "a red circle"}}\n' * 2)
    monkeypatch.chdir(here)

    def said(data: str, code: int) -> str:
        step: dict[str, object] = {"pass": "channel_prune", "component": "generation", "keep_ratio": 0.5}
        keys: dict[str, object] = {"calibration": {"data": data, "samples": 2, "task": "generation"}}
        if key == "training":
            step, keys = {"pass": "adapt", "parameters": ["*.mlp_moe_gen.*"], "data": data}, {}
        assert main(["plan", str(write_recipe(folder, tiny_bagel, step, evaluate=[], **keys))]) == code
        captured = capsys.readouterr()
        return " ".join((captured.out + captured.err).split())

    # A row of it is no training item.
    assert "no row of it is for that" in said("mine.jsonl", 2) if key == "training" else said("mine.jsonl", 0)
    found = said("other.jsonl", 2)
    assert f"there is no {folder / 'other.jsonl'}" in found and "write ../elsewhere/other.jsonl" in found
    assert f"{folder / 'none.jsonl'} found: no such file" in said("none.jsonl", 2)
