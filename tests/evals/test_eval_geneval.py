"""GenEval end to end: folders, verdicts, scores, resuming; a tiny Mask2Former and CLIP on a tiny BAGEL's pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_bagel import write_tiny_bagel
from tiny_judges import PERSON, UMBRELLA, metadata, write_tiny_clip, write_tiny_mask2former

from umcompress.cli import main as cli
from umcompress.documents.report import Report
from umcompress.errors import UsageError
from umcompress.evals.pictures.geneval import GenEval
from umcompress.evals.pictures.geneval_rules import COLORS, TAGS
from umcompress.report import markdown
from umcompress.report.report_view import evaluation_view


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, two judges and data."""
    folder = tmp_path_factory.mktemp("geneval")
    write_tiny_bagel(folder / "model")
    write_tiny_mask2former(folder / "detector", finds={PERSON: 9.0, UMBRELLA: 8.8})
    write_tiny_clip(folder / "clip")
    (folder / "data").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in metadata())
    (folder / "data" / "evaluation_metadata.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture
def evaluate(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    def run(out: Path, *more: str, **options: Any) -> dict[str, Any]:
        given = {"data": place / "data", "images": 2} | options
        named = "geneval:" + ",".join(f"{key}={value}" for key, value in given.items())
        capsys.readouterr()
        arguments = ["evaluate", str(place / "model"), "--evaluation", named, "-o", str(out), "--format", "json", *more]
        assert cli.main(arguments) == 0, capsys.readouterr().err
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        return report

    return run


def score_of(report: dict[str, Any]) -> dict[str, Any]:
    score: dict[str, Any] = report["steps"][0]["scores"]["generation"]
    return {key: value for key, value in score.items() if key != "seconds"}


def results(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "geneval/results.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def done(place: Path) -> Path:
    """One whole evaluation through the command line."""
    options = f"data={place / 'data'},images=2,detector={place / 'detector'},classifier={place / 'clip'}"
    out = place / "done"
    arguments = ["evaluate", str(place / "model"), "--evaluation", f"geneval:{options}", "-o", str(out)]
    assert cli.main(arguments) == 0
    return out


def test_pictures_lie_in_the_official_folders(done: Path) -> None:
    rows = metadata()
    images = done / "geneval" / "images"
    assert sorted(folder.name for folder in images.iterdir()) == [f"{index:05d}" for index in range(len(rows))]
    for index, row in enumerate(rows):
        folder = images / f"{index:05d}"
        assert json.loads((folder / "metadata.jsonl").read_text(encoding="utf-8")) == row
        assert sorted(path.name for path in (folder / "samples").iterdir()) == ["0000.png", "0001.png"]
        with Image.open(folder / "samples" / "0000.png") as image:
            assert (image.size, image.mode) == ((48, 48), "RGB")
        with Image.open(folder / "grid.png") as image:
            assert image.size[0] > 72
    assert not list(done.rglob("*.partial"))
    with Image.open(done / "geneval" / "samples.png") as sheet:
        assert sheet.size[0] > 400


def test_the_score_is_the_mean_of_the_kinds_and_says_what_it_is(done: Path) -> None:
    report = json.loads((done / "report.json").read_text(encoding="utf-8"))
    score, rows = score_of(report), results(done)
    shares = {tag: np.mean([row["correct"] for row in rows if row["tag"] == tag]) for tag in TAGS}
    assert score["value"] == pytest.approx(np.mean(list(shares.values())))
    assert {kind: part["value"] for kind, part in score["by_kind"].items()} == pytest.approx(shares)
    assert 0 < score["value"] < 1, "a test in which all is right or all is wrong shows little"
    assert score["low"] < score["value"] < score["high"]
    assert score["numbers"]["pictures right"]["value"] == pytest.approx(np.mean([row["correct"] for row in rows]))
    by_prompt = {row["metadata"]: False for row in rows}
    for row in rows:
        by_prompt[row["metadata"]] |= row["correct"]
    assert score["numbers"]["prompts with a right picture"]["value"] == pytest.approx(np.mean(list(by_prompt.values())))
    assert score["partial"] == "24 of 2212"
    assert "detector detector, colours clip" in score["variant"]
    assert "mmdet" in score["variant"]
    report_text = markdown.text(evaluation_view(Report.model_validate(report)))
    assert "geneval is a variant: detector detector" in report_text
    assert "24 of 2212" in report_text


def test_rows_have_the_official_columns_and_all_that_was_found(done: Path) -> None:
    rows = results(done)
    assert [row["filename"] for row in rows[:3]] == [
        "00000/samples/0000.png", "00000/samples/0001.png", "00001/samples/0000.png",
    ]
    for row in rows:
        assert list(row)[1:8] == ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
        asked = json.loads(row["metadata"])
        assert row["prompt"] == asked["prompt"]
        assert row["detections"]
        assert {one["class"] for one in row["detections"]} <= {"person", "umbrella"}
        assert all(one["color"] in COLORS for one in row["detections"] if "color" in one)
        if row["tag"] == "colors" and "umbrella>=1, found 0" not in row["reason"]:
            assert any("color" in one for one in row["detections"])
        kept = json.loads(row["details"])
        limit = 0.9 if row["tag"] == "counting" else 0.3
        assert all(box[4] > limit for boxes in kept.values() for box in boxes)
    assert any("expected zebra>=1, found 0" in row["reason"] for row in rows)


def test_the_same_score_from_the_files_of_detections_and_of_results(
    done: Path, tmp_path: Path, evaluate: Callable[..., dict[str, Any]]
) -> None:
    before = score_of(json.loads((done / "report.json").read_text(encoding="utf-8")))
    official = tmp_path / "official.jsonl"
    columns = ("filename", "tag", "prompt", "correct", "reason", "metadata", "details")
    text = "\n".join(
        json.dumps({name: f"/root/images/{row[name]}" if name == "filename" else row[name] for name in columns})
        for row in reversed(results(done))
    )
    official.write_text(text, encoding="utf-8")  # pandas writes no end of the last line
    for index, file in enumerate((done / "geneval" / "results.jsonl", official)):
        again = score_of(evaluate(tmp_path / str(index), detections=file))
        assert again["variant"] == f"judged from {file.name}"
        assert again | {"variant": ""} == before | {"variant": ""}
        assert not (tmp_path / str(index) / "geneval" / "images").exists()


def test_a_changed_verdict_changes_the_score(
    done: Path, tmp_path: Path, evaluate: Callable[..., dict[str, Any]]
) -> None:
    rows = results(done)
    for row in rows:
        row["detections"] = [one | {"score": 0.01} for one in row["detections"]]
    file = tmp_path / "none.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert score_of(evaluate(tmp_path / "out", detections=file))["value"] == 0


def test_a_killed_run_goes_on_and_ends_the_same(
    done: Path, place: Path, tmp_path: Path, evaluate: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from umcompress.models.bagel import runner

    out = tmp_path / "out"
    generate = runner.BagelRunner.generate
    calls: list[int] = []

    def killed(self: Any, prompts: Any, *rest: Any, **more: Any) -> Any:
        if len(calls) == 2:
            raise KeyboardInterrupt
        return counted(self, prompts, *rest, **more)

    def counted(self: Any, prompts: Any, *rest: Any, **more: Any) -> Any:
        calls.append(len(prompts))
        return generate(self, prompts, *rest, **more)

    monkeypatch.setattr(runner, "LARGEST_BATCH", 5)
    monkeypatch.setattr(runner.BagelRunner, "generate", killed)
    options = {"detector": place / "detector", "classifier": place / "clip"}
    with pytest.raises(AssertionError):
        evaluate(out, **options)
    assert len(list(out.rglob("samples/*.png"))) == 10
    calls.clear()
    monkeypatch.setattr(runner.BagelRunner, "generate", counted)
    first = evaluate(out, **options)
    assert calls == [5, 5, 4]
    calls.clear()
    assert score_of(evaluate(out, **options)) == score_of(first)
    assert calls == [], "what is there is not painted again"
    for path in (done / "geneval" / "images").rglob("samples/*.png"):
        other = out / path.relative_to(done)
        with Image.open(path) as a, Image.open(other) as b:  # other batches: equal but for rounding
            assert np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max() <= 1


def test_a_limit_is_even_over_the_kinds_and_paints_the_same_pictures(
    done: Path, tmp_path: Path, evaluate: Callable[..., dict[str, Any]]
) -> None:
    """Without judges: pictures, and no score."""
    report = evaluate(tmp_path, "--limit", "6", images=1)
    assert report["steps"][0]["scores"] == {}
    made = sorted((tmp_path / "geneval" / "images").rglob("samples/*.png"))
    assert len(made) == 6
    rows = metadata()
    assert {rows[int(path.parts[-3])]["tag"] for path in made} == set(TAGS)
    for path in made:
        with Image.open(path) as a, Image.open(done / path.relative_to(tmp_path)) as b:
            assert np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max() <= 1


def test_what_is_wrong_is_said_before_anything_is_painted(place: Path, tmp_path: Path) -> None:
    data = place / "data"
    with pytest.raises(UsageError, match=r"missing: .*evaluation_metadata.jsonl(.|\n)*djghosh13/geneval"):
        GenEval(data=tmp_path).check()
    with pytest.raises(UsageError, match="there is no classifier"):
        GenEval(data=data, detector=place / "detector").check()
    with pytest.raises(UsageError, match=r"holds a clip model"):
        GenEval(data=data, detector=place / "clip", classifier=place / "clip").check()
    file = tmp_path / "detections.jsonl"
    for text, message in (
        ("{", "line 1 is not JSON"),
        ('{"filename": "x.png"}', "line 1 is about 'x.png'"),
        ('{"filename": "00099/samples/0000.png"}', "line 1 is about"),
        ('{"filename": "00000/samples/0000.png", "prompt": "other"}', "prompt 'other'"),
        ('{"filename": "00000/samples/0000.png"}', "neither"),
        ('{"filename": "00000/samples/0000.png", "detections": [{"class": "person"}]}', "line 1: no 'box'"),
        ('{"filename": "00003/samples/0000.png", "detections": [{"class": "umbrella", "box": [0, 0, 1, 1], '
         '"score": 0.9}]}', "has no colour"),
    ):  # fmt: skip
        file.write_text(text + "\n", encoding="utf-8")
        with pytest.raises(UsageError, match=message):
            GenEval(data=data, detections=file).check()
    good = metadata()
    for change, message in (
        ({"tag": "texture"}, "line 1: tag 'texture'"),
        ({"include": []}, "no list"),
        ({"include": [{"class": "cat", "count": 1, "color": "mauve"}]}, "colour 'mauve'"),
        ({"include": [{"class": "cat", "count": 1, "position": ["left of", 0]}]}, "position"),
    ):
        wrong = tmp_path / "wrong.jsonl"
        wrong.write_text(json.dumps(good[0] | change) + "\n", encoding="utf-8")
        with pytest.raises(UsageError, match=message):
            GenEval(data=wrong).check()
