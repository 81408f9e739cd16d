"""The detector: right on true drawings, forgiving of blur and noise, doubtful of blobs."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from umcompress.evals.scenes import world
from umcompress.evals.scenes.detector import confidence, detect
from umcompress.evals.scenes.glyphs import FILLS, SHAPES

Y, X = np.mgrid[:48, :48] - 23.5


def _paint(
    mask: NDArray[np.floating] | NDArray[np.bool_], colour: tuple[int, int, int] = world.COLOURS["red"]
) -> world.Image:
    background = np.array(world.BACKGROUND, dtype=float)
    return np.rint(background + mask[..., None] * (np.array(colour) - background)).astype(np.uint8)


def _samples(n: int, seed: int = 0) -> list[tuple[world.Image, world.Scene]]:
    rng = np.random.default_rng(seed)
    scenes = [world.sample_scene(rng, "evaluation") for _ in range(n)]
    return [(world.render(scene), scene) for scene in scenes]


def agrees(image: world.Image, scene: world.Scene, threshold: float = 0.3) -> bool:
    """Whether the detector sees just the scene's objects: shape, look and cell of each, and no more."""
    seen: Counter[tuple[str, str | None, int]] = Counter()
    for found in detect(image):
        x1, y1, x2, y2 = found.box
        cell = int((y1 + y2) / 2 // world.CELL) * world.GRID + int((x1 + x2) / 2 // world.CELL)
        if found.score > threshold:
            seen[found.label, found.color, cell] += 1
    return seen == Counter((o.shape, o.look, o.cell) for o in scene.objects)


def test_agrees_with_the_truth_on_a_thousand_drawings() -> None:
    assert sum(agrees(image, scene) for image, scene in _samples(1000)) >= 990


def test_every_look_is_found_exactly() -> None:
    for number, (shape, colour, fill) in enumerate(itertools.product(SHAPES, world.COLOUR_NAMES, FILLS)):
        dx, dy = world.OFFSETS[number % 2], world.OFFSETS[number // 2 % 2]
        thing = world.Object(shape, colour, fill, number % 9, dx, dy)
        (found,) = detect(world.render(world.Scene((thing,))))
        assert (found.label, found.color, found.box, found.score) == (shape, f"{fill} {colour}", thing.box, 1.0)


@pytest.mark.parametrize(("blur", "noise"), [(0.0, 8.0), (0.0, 12.0), (0.3, 8.0)])
def test_forgives_what_an_autoencoder_does(blur: float, noise: float) -> None:
    rng = np.random.default_rng(1)
    right = 0
    for image, scene in _samples(100, seed=1):
        soft = ndimage.gaussian_filter(image.astype(float), (blur, blur, 0)) if blur else image
        rough = np.clip(soft + rng.normal(0, noise, image.shape), 0, 255).astype(np.uint8)
        right += agrees(rough, scene, threshold=0.9)
    assert right >= 99


@pytest.mark.parametrize(
    "mask",
    [
        (np.hypot(X, Y) < 3),
        (abs(X) < 8) & (abs(Y) < 1.5),
        (abs(X) < 2) & (abs(Y) < 8),
        (abs(X) < 10) & (abs(Y) < 10),
    ],
    ids=["too small", "flat", "upright", "over several cells"],
)
def test_other_shapes_do_not_count(mask: NDArray[np.bool_]) -> None:
    assert all(found.score < 0.9 for found in detect(_paint(mask)))


def test_half_a_shape_counts_less_than_the_whole() -> None:
    thing = world.Object("square", "red", "plain", 4, 1, 1)
    image = world.render(world.Scene((thing,))).copy()
    image[24:] = world.BACKGROUND
    assert all(found.score < 0.9 for found in detect(image))


def test_random_blobs_hardly_ever_count() -> None:
    rng = np.random.default_rng(2)
    scores = []
    for _ in range(60):
        field = ndimage.gaussian_filter(rng.normal(size=(48, 48)), 2.0)
        scores += [d.score for d in detect(_paint(np.clip((field / field.std() - 1) * 4, 0, 1)))]
    assert len(scores) > 60
    assert np.mean(np.array(scores) > 0.9) < 0.03


def test_empty_and_noisy_pictures_show_nothing() -> None:
    assert detect(_paint(np.zeros((48, 48)))) == []
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    assert all(found.score < 0.3 for found in detect(noise))


def test_pictures_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="48 x 48"):
        detect(np.zeros((36, 36, 3), dtype=np.uint8))


@given(st.floats(0, 1), st.floats(0, 1))
def test_confidence_is_monotone(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert 0 <= confidence(high) <= confidence(low) <= 1
    assert confidence(0.0) == 1.0
