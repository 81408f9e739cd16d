"""Pictures that are not 8-bit RGB, and those that a processor does not take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf_models import write_recipe
from PIL import Image
from seeing_models import write_seeing
from unified_models import write_unified

from umcompress.cli.main import main
from umcompress.data.calibration_file import CalibrationFile
from umcompress.data.overlap import _pixels
from umcompress.data.training_file import TrainingFile
from umcompress.evals.answers._questions import StoredPicture
from umcompress.evals.pictures._pictures import open_rgb
from umcompress.models.pictures import open_picture
from umcompress.run import ask as asking


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_seeing("qwen2_vl", tmp_path_factory.mktemp("qwen2_vl"))


@pytest.mark.parametrize("mode", ["I;16", "I", "RGBA", "turned"])
def test_pictures_of_other_kinds_look_as_they_do_to_people(
    mode: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """16 bits keep their shades, what is clear is white, photographs stand upright."""
    gray = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    image, exif = Image.fromarray(gray), Image.Exif()
    plain = image.convert("RGB")
    if mode.startswith("I"):
        wide = gray.astype(np.uint16) * 257
        image = Image.fromarray(wide if mode == "I;16" else wide.astype(np.int32))
    elif mode == "RGBA":
        image = Image.merge("RGBA", (*plain.split(), Image.new("L", plain.size, 255)))
        image.paste((9, 9, 9, 0), (0, 0, 12, 20))
        plain.paste((255, 255, 255), (0, 0, 12, 20))
    else:
        exif[0x0112] = 6
        plain = plain.transpose(Image.Transpose.ROTATE_270)
    form = "png" if mode == "turned" else "tiff"
    image.save(tmp_path / f"odd.{form}", exif=exif)
    plain.save(tmp_path / "plain.png")
    assert np.array_equal(np.asarray(open_picture(tmp_path / f"odd.{form}", "odd")), np.asarray(plain))
    answers = []
    for name in (f"odd.{form}", "plain.png"):
        assert main(["ask", str(folder), str(tmp_path / name), "what is it?"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] and answers[0].strip()


RAMP = np.tile(np.arange(256, dtype=np.uint8), (8, 1))


def odd_picture(kind: str, path: Path) -> Path:
    """A ramp from black to white (a red one, or half clear where that is the kind), saved as a picture of a kind."""
    gray = Image.fromarray(RAMP)
    if kind == "16-bit":
        gray = Image.fromarray(RAMP.astype(np.uint16) * 257)
    elif kind == "clear":
        gray = Image.merge("RGBA", (gray, gray, gray, Image.fromarray(np.where(RAMP < 128, 0, 255).astype(np.uint8))))
    elif kind == "palette":
        gray = gray.quantize(256)
    elif kind == "CMYK":
        gray = gray.convert("RGB").convert("CMYK")
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        gray.save(file := path / "odd.png", exif=exif)
    elif kind == "CMYK":
        gray.save(file := path / "odd.tiff")
    elif kind == "animated":
        gray.save(file := path / "odd.png", save_all=True, append_images=[Image.new("L", gray.size, 9)])
    elif kind == "clear palette":
        gray.quantize(256).save(file := path / "odd.gif", transparency=gray.quantize(256).getpixel((0, 0)))
    else:
        gray.save(file := path / "odd.png")
    return file


def expected(kind: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    seen = RAMP.copy()
    if kind == "clear":
        seen[:, :128] = 255
    if kind == "clear palette":
        seen[:, 0] = 255
    return np.repeat((np.rot90(seen, -1) if kind == "turned" else seen)[..., None], 3, -1)


@pytest.mark.parametrize(
    "kind", ["16-bit", "clear", "palette", "clear palette", "turned", "CMYK", "animated"]
)
def test_a_picture_is_read_the_same_everywhere(
    kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In evaluation, calibration, training, scoring, `ask`, and where calibration is held against evaluation."""
    file = odd_picture(kind, tmp_path)
    (tmp_path / "own.jsonl").write_text(json.dumps({"image": file.name, "question": "what?", "answer": "a ramp"}))
    data = tmp_path / "own.jsonl"
    asked: list[Any] = []

    class Asked:
        def answer(self, images: list[Any], questions: list[str]) -> list[str]:
            asked.extend(images)
            return ["yes"]

    monkeypatch.setattr("umcompress.models.source.Source.load", lambda self: None)
    monkeypatch.setattr("umcompress.models.source.Source.runner", lambda self, model: Asked())
    asking.ask(str(folder), file, "what?")
    taught: Any = TrainingFile(data=data).training_items("understanding", 1, 0)[0]
    found = {
        "evaluation, a file": StoredPicture("one", file).open(),
        "evaluation, its bytes": StoredPicture("one", file.read_bytes).open(),
        "scoring": open_rgb(file),
        "calibration": CalibrationFile(data=data).calibration_items("understanding", 1, 0)[0].image,
        "training": taught.image,
        "ask": asked[0],
    }
    for where, image in found.items():
        assert image.mode == "RGB" and np.array_equal(np.asarray(image), expected(kind)), where
    plain = tmp_path / "plain.png"
    Image.fromarray(expected(kind)).save(plain)
    assert _pixels(file) == _pixels(plain) == _pixels(plain.read_bytes())


@pytest.mark.parametrize("kind", ["qwen2_vl", "emu3"])
def test_a_picture_that_the_processor_does_not_take_is_an_error(
    kind: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = folder if kind == "qwen2_vl" else write_unified(kind, tmp_path / kind)
    Image.new("RGB", (900, 2)).save(tmp_path / "long.png")
    assert main(["ask", str(model), str(tmp_path / "long.png"), "what is it?"]) == 2
    said = capsys.readouterr().err
    assert "prepare 1 picture with" in said and "aspect ratio must be smaller than 200" in said


def test_a_processor_that_leaves_other_places_than_the_model_fills_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without this file the processor keeps 256 places for a picture; the model has 4 features."""
    model = write_seeing("gemma3", tmp_path / "gemma3")
    (model / "processor_config.json").unlink()
    Image.new("RGB", (20, 20)).save(tmp_path / "one.png")
    assert main(["ask", str(model), str(tmp_path / "one.png"), "what is it?"]) == 2
    said = capsys.readouterr().err
    assert "the processor of" in said and "tokens: 256, features: 4" in said


@pytest.mark.parametrize("picture", ["missing.png", "broken.png"])
def test_calibration_pictures_that_cannot_be_read_are_an_error(
    picture: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "own.jsonl").write_text(json.dumps({"image": picture, "question": "what?"}))
    calibration = {"samples": 1, "data": str(tmp_path / "own.jsonl")}
    step = {"pass": "channel_prune", "component": "shared", "keep_ratio": 0.5}
    recipe = write_recipe(tmp_path, folder, step, evaluate=[], calibration=calibration)
    assert main(["apply", str(recipe), "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert f"the calibration picture {tmp_path / picture}" in said and "not readable" in said
