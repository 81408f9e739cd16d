"""wise, clip_score and fidelity end to end on a tiny BAGEL."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_bagel import write_recipe, write_tiny_bagel
from tiny_judges import write_tiny_clip

from umcompress.cli import main as cli
from umcompress.errors import UsageError
from umcompress.evals.pictures._prompts import read_prompts
from umcompress.evals.pictures.clip_score import ClipScore
from umcompress.evals.pictures.fidelity import Fidelity
from umcompress.evals.pictures.wise import Wise
from umcompress.evals.pictures.wise_rules import CATEGORIES, Graded, category

PROMPTS = ("a red circle", "two green squares", "a blue cross", "a yellow triangle", "three purple circles")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generation")
    write_tiny_bagel(folder / "model")
    write_tiny_bagel(folder / "other", seed=1)
    write_tiny_clip(folder / "clip")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    (folder / "wise").mkdir()
    return folder


@pytest.fixture
def evaluate(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    def run(out: Path, evaluation: str, model: str = "model") -> dict[str, Any]:
        capsys.readouterr()
        arguments = ["evaluate", str(place / model), "--evaluation", evaluation, "-o", str(out), "--format", "json"]
        assert cli.main(arguments) == 0, capsys.readouterr().err
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        return report

    return run


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image, dtype=np.float64)


# -- wise -----------------------------------------------------------------------------------------------------------


def wise_prompts(folder: Path) -> list[dict[str, Any]]:
    """Three files in the official form, two prompts of each category."""
    places = {"Cultural": (1, 2), "Time": (401, 402), "Space": (568, 569), "Biology": (701, 702), "Physics": (801, 802),
              "Chemistry": (901, 902)}  # fmt: skip
    rows = [
        {
            "Prompt": f"a {'red' if place else 'blue'} circle", "Explanation": f"about {name}", "Category": name,
            "Subcategory": "Longitudinal time" if name == "Time" else name, "prompt_id": number,
        }
        for name, numbers in places.items() for place, number in enumerate(numbers)
    ]
    parts = {"cultural_common_sense": rows[:2], "spatio-temporal_reasoning": rows[2:6], "natural_science": rows[6:]}
    for name, part in parts.items():
        (folder / f"{name}.json").write_text(json.dumps(part), encoding="utf-8")
    return rows


def test_wise_paints_and_asks_then_scores_grades(
    place: Path, tmp_path: Path, evaluate: Callable[..., dict[str, Any]]
) -> None:
    rows = wise_prompts(place / "wise")
    report = evaluate(tmp_path / "out", f"wise:data={place / 'wise'}")
    assert report["steps"][0]["scores"] == {}
    made = {path.name for path in (tmp_path / "out/wise/images").iterdir()}
    assert made == {f"{row['prompt_id']}.png" for row in rows}
    asked = [json.loads(line) for line in (tmp_path / "out/wise/questions.jsonl").read_text().splitlines()]
    assert [(one["prompt_id"], one["image"], one["Explanation"]) for one in asked] == [
        (row["prompt_id"], f"images/{row['prompt_id']}.png", row["Explanation"]) for row in rows
    ]
    assert [one["Category"] for one in asked[::2]] == list(CATEGORIES)

    rng = np.random.default_rng(0)
    grades = [
        {"prompt_id": row["prompt_id"]} | {name: int(rng.integers(0, 3)) for name in
                                           ("consistency", "realism", "aesthetic_quality")}
        for row in rows
    ]
    graded = [Graded(row["prompt_id"], row["Subcategory"], *map(float, list(grade.values())[1:]))
              for row, grade in zip(rows, grades, strict=True)]
    parts: dict[str, list[float]] = {}
    for one in graded:
        weighted = 0.7 * one.consistency + 0.2 * one.realism + 0.1 * one.aesthetic_quality
        parts.setdefault(category(one.prompt_id, one.subcategory), []).append(weighted / 2)
    means = {name: sum(values) / len(values) for name, values in parts.items()}
    texts = [
        {"prompt_id": one["prompt_id"], "evaluation": f"**Consistency:** x\nConsistency: {one['consistency']}\n"
         f"Realism: {one['realism']}\nAesthetic Quality: {one['aesthetic_quality']}"}
        for one in grades
    ]
    for index, lines in enumerate((grades, texts)):
        file = tmp_path / "grades.jsonl"
        file.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
        report = evaluate(tmp_path / f"scored{index}", f"wise:data={place / 'wise'},grades={file}")
        score = report["steps"][0]["scores"]["generation"]
        assert score["value"] == pytest.approx(sum(means.values()) / 6)
        assert score["numbers"]["by size"]["value"] == pytest.approx(sum(map(sum, parts.values())) / len(rows))
        assert {name: part["value"] for name, part in score["by_kind"].items()} == pytest.approx(means)
        assert score["partial"] == "12 of 1000"
        assert "grades.jsonl" in score["variant"]


def test_wise_refuses_grades_that_are_none(place: Path, tmp_path: Path) -> None:
    wise_prompts(place / "wise")
    file = tmp_path / "grades.json"
    whole = {"prompt_id": 1, "consistency": 1, "realism": 1, "aesthetic_quality": 1}
    for content, message in (
        ([whole | {"realism": 9.9}], "could not be read"),
        ([whole | {"realism": 3}], "realism 3 is not in 0 to 2"),
        ([{"prompt_id": 1}], "no 'consistency'"),
        ([whole, whole], "graded twice"),
        ([whole | {"prompt_id": 5}], "none of these prompts"),
        ([{"prompt_id": 1, "evaluation": "I cannot judge"}], "could not be read"),
        (3, "no list of objects"),
    ):
        file.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(UsageError, match=message):
            Wise(data=place / "wise", grades=file).check()
    with pytest.raises(UsageError, match=r"missing: .*cultural_common_sense.json(.|\n)*PKU-YuanGroup"):
        Wise(data=tmp_path).check()


# -- clip_score -----------------------------------------------------------------------------------------------------


def test_clip_score_is_the_mean_cosine(place: Path, tmp_path: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    report = evaluate(tmp_path, f"clip_score:data={place / 'prompts.txt'},clip={place / 'clip'}")
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    model = CLIPModel.from_pretrained(place / "clip").eval()
    tokenizer = CLIPTokenizer.from_pretrained(place / "clip")
    processor = CLIPImageProcessorPil.from_pretrained(place / "clip")
    cosines = []
    for index, prompt in enumerate(PROMPTS):
        with Image.open(tmp_path / f"clip_score/images/{index:05d}.png") as image, torch.no_grad():
            out = model(**tokenizer([prompt], return_tensors="pt"), **processor(images=image, return_tensors="pt"))
        cosines.append(max(0.0, float((out.text_embeds * out.image_embeds).sum())))
    score = report["steps"][0]["scores"]["generation"]
    assert score["value"] == pytest.approx(np.mean(cosines), abs=1e-5)
    assert score["value"] > 0
    assert score["numbers"]["x 100"]["value"] == pytest.approx(100 * np.mean(cosines), abs=1e-3)
    assert score["partial"] is None
    half = 2.776445 * np.std(cosines, ddof=1) / np.sqrt(5)
    assert score["high"] - score["value"] == pytest.approx(half, rel=1e-3)


def test_clip_score_needs_a_clip_and_prompts(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no `clip`"):
        ClipScore(data=place / "prompts.txt").check()
    with pytest.raises(UsageError, match=r"missing: .*prompts.txt"):
        ClipScore(data=tmp_path, clip=place / "clip").check()


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.txt", "one\n\n two \n"), ("a.jsonl", '{"prompt": "one"}\n{"caption": "two", "n": 1}\n'),
     ("a.json", '["one", {"text": "two"}]')],
)  # fmt: skip
def test_prompts_of_any_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_prompts(tmp_path / name, "prompts") == ["one", "two"]
    for wrong in ("", '{"prompt": 1}\n'):
        (tmp_path / "b.jsonl").write_text(wrong, encoding="utf-8")
        with pytest.raises(UsageError, match="no prompt"):
            read_prompts(tmp_path / "b.jsonl", "prompts")


# -- fidelity -------------------------------------------------------------------------------------------------------


def expected_likeness(place: Path, pictures: Path, reference: Path) -> dict[str, float]:
    """By plain formulas, latents from a freshly loaded model."""
    from umcompress.models.source import open_source

    source = open_source(str(place / "model"))
    runner: Any = source.runner(source.load())
    likeness: dict[str, list[float]] = {"pixels": [], "latents": []}
    for index in range(len(PROMPTS)):
        a, b = (pixels(folder / f"{index:05d}.png") for folder in (pictures, reference))
        likeness["pixels"].append(1 - np.sqrt(np.mean(((a - b) / 255) ** 2)))
        with torch.no_grad():
            x, y = (
                runner.model.vae.encode(torch.tensor(image / 127.5 - 1, dtype=torch.float32).permute(2, 0, 1)[None])
                for image in (a, b)
            )
        likeness["latents"].append(1 - float((x - y).norm() / y.norm()))
    return {kind: float(np.mean(values)) for kind, values in likeness.items()}


def test_fidelity_to_a_named_model(place: Path, tmp_path: Path, evaluate: Callable[..., dict[str, Any]]) -> None:
    data = f"data={place / 'prompts.txt'}"
    report = evaluate(tmp_path / "other", f"fidelity:{data},reference={place / 'model'}", "other")
    score = report["steps"][0]["scores"]["generation"]
    folder = tmp_path / "other/fidelity"
    likeness = expected_likeness(place, folder / "images", folder / "reference/images")
    found = {kind: part["value"] for kind, part in score["by_kind"].items()}
    assert found["pixels"] == pytest.approx(likeness["pixels"], abs=1e-6)
    assert score["value"] == found["pixels"] < 1
    assert score["by_kind"]["pixels"]["chance"] < 1
    assert (score["n"], score["partial"]) == (5, None)
    report = evaluate(tmp_path / "same", f"fidelity:{data},reference={place / 'model'}")
    same = report["steps"][0]["scores"]["generation"]
    assert (same["value"], same["by_kind"]["latents"]["value"]) == (1, 1)
    assert same["by_kind"]["latents"]["chance"] < 0.9


def test_fidelity_by_itself_asks_for_the_reference(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = f"fidelity:data={place / 'prompts.txt'}"
    assert cli.main(["evaluate", str(place / "model"), "--evaluation", named, "-o", str(tmp_path / "out")]) == 2
    assert "fidelity:reference=MODEL" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"missing: .*prompts.txt"):
        Fidelity(data=tmp_path).check()


def test_fidelity_in_a_recipe_is_to_the_model_before_the_first_step(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drop = {"pass": "layer_drop", "component": "generation", "unit": "feed_forward", "drop": [1]}
    keep = {"pass": "layer_drop", "component": "generation", "unit": "feed_forward", "keep_ratio": 1.0}
    recipe = write_recipe(
        tmp_path, place / "model", keep, drop,
        evaluate=[{"fidelity": {"data": str(place / "prompts.txt")}}],
    )
    assert cli.main(["apply", str(recipe), "-o", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "run/report.json").read_text(encoding="utf-8"))
    values = [step["scores"]["generation"]["value"] for step in report["steps"]]
    assert values[:2] == [1.0, 1.0]
    folders = sorted(path for path in (tmp_path / "run/steps").iterdir() if path.is_dir())
    likeness = expected_likeness(place, folders[2] / "fidelity/images", folders[0] / "fidelity/images")
    assert values[2] == pytest.approx(likeness["pixels"], abs=1e-6)
    kinds = report["steps"][2]["scores"]["generation"]["by_kind"]
    assert kinds["latents"]["value"] == pytest.approx(likeness["latents"], abs=1e-4)
    assert values[2] < 1
    assert not (folders[0] / "fidelity/reference").exists()


# -- the built-in model ---------------------------------------------------------------------------------------------


def test_all_of_them_on_the_built_in_model(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tiny_judges import write_tiny_mask2former

    write_tiny_mask2former(tmp_path / "detector", finds={0: 9.0})
    wise_prompts(place / "wise")
    tags = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
    asked = [{"tag": tag, "include": [{"class": "person", "count": 1}], "prompt": "a red circle"} for tag in tags]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    prompts = f"data={place / 'prompts.txt'},limit=3"
    named = (
        f"geneval:data={tmp_path}/metadata.jsonl,images=1,detector={tmp_path}/detector,classifier={place}/clip",
        f"wise:data={place}/wise,limit=2", f"clip_score:{prompts},clip={place}/clip",
        f"fidelity:{prompts},reference=bagel-mini",
    )
    capsys.readouterr()
    arguments = [word for name in named for word in ("--evaluation", name)]
    assert cli.main(["evaluate", "bagel-mini", *arguments, "-o", str(tmp_path / "out"), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)["steps"][0]["evaluations"]
    assert found["wise"] == {}
    assert len(list((tmp_path / "out/wise/images").iterdir())) == 2
    assert found["geneval"]["generation"]["partial"] == "6 of 2212"
    assert set(found["geneval"]["generation"]["by_kind"]) == set(tags)
    assert found["clip_score"]["generation"]["partial"] == "3 of 5"
    assert found["fidelity"]["generation"]["value"] == 1
    red, grey = (220, 40, 40), (230, 230, 230)
    picture = pixels(tmp_path / "out/geneval/images/00000/samples/0000.png")
    for color, allowed in ((grey, 12), (red, 40)):
        assert np.abs(picture - color).max(-1).min() < allowed, "a red circle on grey"
