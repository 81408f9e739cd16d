"""Detector and colour classifier: what they compute from a model's outputs, against plain loops in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_judges import write_tiny_clip, write_tiny_mask2former

from umcompress.errors import ModelError
from umcompress.evals.pictures._clip import Clip
from umcompress.evals.pictures._detectors import CLASSES, ClipColors, Mask2FormerDetector, cut_out, select
from umcompress.evals.pictures.geneval_rules import COLORS, Detection

PERSON, UMBRELLA = CLASSES.index("person"), CLASSES.index("umbrella")


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judges")
    write_tiny_mask2former(folder / "detector", finds={PERSON: 7.0, UMBRELLA: 6.8})
    write_tiny_clip(folder / "clip")
    return folder


def slow_select(classes: np.ndarray, masks: np.ndarray, most: int, floor: float) -> list[tuple[Any, ...]]:
    """mmdet's instance rule, one candidate at a time."""
    chances = np.exp(classes - classes.max(1, keepdims=True))
    chances = (chances / chances.sum(1, keepdims=True))[:, :-1]
    candidates = sorted(
        ((chances[q, c], q, c) for q in range(len(chances)) for c in range(chances.shape[1])), reverse=True
    )
    found = []
    for chance, query, label in candidates[:most]:
        inside = [(y, x) for y, x in np.ndindex(masks[query].shape) if masks[query][y, x] > 0]
        if chance <= floor or not inside:
            continue
        score = chance * np.mean([1 / (1 + np.exp(-masks[query][y, x])) for y, x in inside])
        ys, xs = [y for y, _ in inside], [x for _, x in inside]
        found.append((CLASSES[label], (min(xs), min(ys), max(xs) + 1, max(ys) + 1), score, len(inside)))
    return sorted(found, key=lambda thing: -thing[2])


def same(found: list[Detection], expected: list[tuple[Any, ...]]) -> None:
    assert [(thing.label, thing.box, int(thing.mask.sum())) for thing in found] == [
        (label, box, size) for label, box, _, size in expected
    ]
    assert [thing.score for thing in found] == pytest.approx([score for _, _, score, _ in expected], rel=1e-4)


def test_select_is_mmdets_rule() -> None:
    rng = np.random.default_rng(0)
    classes, masks = rng.normal(0, 3, (5, 81)), rng.normal(-1, 1, (5, 6, 9))
    masks[3] = -1  # an empty mask finds nothing
    masks[4] = -1
    masks[4, 5, 8] = 2
    for most, floor in ((100, 0.0), (7, 0.0), (100, 0.05)):
        found = select(torch.tensor(classes), torch.tensor(masks), most, floor)
        same(found, slow_select(classes, masks, most, floor))
        assert found and (most < 100 or floor or len(found) > 20)


def test_the_class_of_nothing_is_never_found() -> None:
    classes = torch.full((1, 81), -20.0)
    classes[0, 80] = 20.0
    assert select(classes, torch.ones(1, 4, 4)) == []


@pytest.mark.parametrize("size", [(64, 64), (60, 100), (100, 40)])
def test_detector_pads_as_mmdet_and_reads_masks_at_the_pictures_size(judges: Path, size: tuple[int, int]) -> None:
    """The picture is padded to whole strides; logits go to the padded size, are cut, then go to the picture's size."""
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8))
    detector = Mask2FormerDetector(judges / "detector")
    short, long = min(size), max(size)
    scaled = int(64 * long / short) if 64 * long / short <= 128 else 128
    narrow = 64 if 64 * long / short <= 128 else round(128 * short / long)
    height, width = (scaled, narrow) if size[0] > size[1] else (narrow, scaled)
    pixels = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float64) / 255
    pixels = (pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    canvas = np.zeros((-(-height // 32) * 32, -(-width // 32) * 32, 3))
    canvas[:height, :width] = pixels
    with torch.no_grad():
        out = detector.model(pixel_values=torch.tensor(canvas, dtype=torch.float32).permute(2, 0, 1)[None])
    resize = torch.nn.functional.interpolate
    masks = resize(out.masks_queries_logits.double(), canvas.shape[:2], mode="bilinear", align_corners=False)
    masks = resize(masks[..., :height, :width], size, mode="bilinear", align_corners=False)[0]
    expected = slow_select(out.class_queries_logits[0].double().numpy(), masks.numpy(), 100, 0.05)
    found = detector.detect(picture)
    same(found, expected)
    assert {thing.label for thing in found} == {"person", "umbrella"}


def test_cut_out_is_grey_outside_the_mask_and_cropped_to_the_box() -> None:
    pixels = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    mask = np.zeros((6, 8), dtype=bool)
    mask[2:4, 3:7] = True
    mask[3, 3] = False
    seen = np.asarray(cut_out(Image.fromarray(pixels), Detection("cat", (3.0, 2.0, 7.0, 4.0), 1.0, mask=mask)))
    expected = pixels[2:4, 3:7].copy()
    expected[1, 0] = 0x99
    np.testing.assert_array_equal(seen, expected)
    plain = np.asarray(cut_out(Image.fromarray(pixels), Detection("cat", (0.6, 1.4, 2.4, 1.4), 1.0)))
    np.testing.assert_array_equal(plain, pixels[1:2, 1:2])


def test_colours_are_the_nearest_mean_of_three_templates(judges: Path) -> None:
    """Against transformers' own features, one text and one picture at a time, in float64."""
    clip = Clip(judges / "clip")
    mean, spread = np.array(clip.processor.image_mean), np.array(clip.processor.image_std)

    def text(words: str) -> np.ndarray:
        ids = clip.tokenizer(words, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            row = clip.model.text_projection(clip.model.text_model(input_ids=ids).pooler_output)[0].double().numpy()
        return row / np.linalg.norm(row)

    rng = np.random.default_rng(2)
    picture = Image.fromarray(rng.integers(0, 256, (90, 70, 3), dtype=np.uint8))
    things = [Detection("umbrella", (x, 5.0, x + 32.0, 37.0), 1.0) for x in (0.0, 9.0, 20.0, 33.0)]
    heads = []
    for color in COLORS:
        forms = (f"{color} umbrella", f"{color}-colored umbrella", f"{color} object")
        head = np.mean([text(f"a photo of a {form}") for form in forms], axis=0)
        heads.append(head / np.linalg.norm(head))
    expected = []
    for thing in things:
        pixels = np.asarray(picture, dtype=np.float64)[5:37, int(thing.box[0]) : int(thing.box[2])] / 255
        values = torch.tensor((pixels - mean) / spread, dtype=torch.float32).permute(2, 0, 1)[None]
        with torch.no_grad():
            row = clip.model.visual_projection(clip.model.vision_model(values).pooler_output)[0].double().numpy()
        expected.append(COLORS[int(np.argmax(np.array(heads) @ row))])
    assert ClipColors(clip).classify(picture, things, "umbrella") == expected
    assert len(set(expected)) > 1, "the test tells nothing if all objects look alike"
    assert clip.texts(["a red cat"] * 40).shape == (40, 16)
    np.testing.assert_allclose(clip.texts(["a longer text", "a red cat"])[1], text("a red cat"), atol=1e-5)


def test_a_wrong_or_damaged_judge_is_named(judges: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds a clip model"):
        Mask2FormerDetector(judges / "clip")
    with pytest.raises(ModelError, match=r"no folder .*nowhere"):
        Clip(tmp_path / "nowhere")
    damaged = write_tiny_clip(tmp_path / "damaged")
    from safetensors.torch import load_file, save_file

    state = load_file(damaged / "model.safetensors")
    state.pop("visual_projection.weight")
    save_file(state, damaged / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are missing: visual_projection.weight"):
        Clip(damaged)
    (damaged / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="does not load"):
        Clip(damaged)
    other = write_tiny_mask2former(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["id2label"] = {str(index): str(index) for index in range(79)}
    config["label2id"] = {str(index): index for index in range(79)}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"it knows 79 classes|does not load"):
        Mask2FormerDetector(other)


def test_weights_of_a_judge_are_read_from_safetensors_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tiny_clip(tmp_path / "clip")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    with pytest.raises(ModelError, match="it does not load"):
        Clip(folder)
