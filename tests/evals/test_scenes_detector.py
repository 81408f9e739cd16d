"""The detector: right on true drawings, forgiving of blur and noise, doubtful of blobs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from umcompress.evals.scenes import world
from umcompress.evals.scenes.detector import agrees, confidence, detect

Y, X = np.mgrid[:36, :36] - 17.5


def _paint(
    mask: NDArray[np.floating] | NDArray[np.bool_], colour: tuple[int, int, int] = world.COLOURS["red"]
) -> world.Image:
    background = np.array(world.BACKGROUND, dtype=float)
    return np.rint(background + mask[..., None] * (np.array(colour) - background)).astype(np.uint8)


def _samples(n: int, seed: int = 0) -> list[tuple[world.Image, world.Scene]]:
    rng = np.random.default_rng(seed)
    scenes = [world.sample_scene(rng, "evaluation") for _ in range(n)]
    return [(world.render(scene), scene) for scene in scenes]


def test_agrees_with_the_truth_on_a_thousand_drawings() -> None:
    assert sum(agrees(image, scene) for image, scene in _samples(1000)) >= 990


def test_every_shape_size_and_place_is_found_exactly() -> None:
    for shape in world.SHAPES:
        for colour in world.COLOUR_NAMES:
            for size, cell in ((8, 0), (9, 4), (10, 8)):
                thing = world.Object(shape, colour, cell, size, 1, 11 - size)
                (found,) = detect(world.render(world.Scene((thing,))))
                assert (found.label, found.color, found.box) == (shape, colour, thing.box)
                assert found.score > 0.99


@pytest.mark.parametrize(("blur", "noise"), [(0.0, 8.0), (0.4, 0.0), (0.8, 0.0), (0.5, 8.0), (0.7, 12.0)])
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
        (X / 5) ** 2 + (Y / 3) ** 2 < 1,
        (np.hypot(X, Y) < 5) & (np.hypot(X, Y) > 2.5),
        (np.hypot(X, Y) < 5) & (Y > 0),
        (abs(Y) < 5) & (abs(X) <= (5 - Y) / 2),
        (abs(X) < 5) & (abs(Y) < 5) & ((X < -1) | (Y > 1)),
        (abs(X) < 5) & (abs(Y) < 3),
        (abs(X) < 10) & (abs(Y) < 5),
        np.hypot(X, Y) < 8,
        np.hypot(X, Y) < 2.6,
    ],
    ids=["flat", "ring", "half", "upside down", "corner", "bar", "two in one", "too large", "too small"],
)
def test_other_shapes_do_not_count(mask: NDArray[np.bool_]) -> None:
    assert all(found.score < 0.9 for found in detect(_paint(mask)))


def test_random_blobs_hardly_ever_count() -> None:
    rng = np.random.default_rng(2)
    scores = []
    for _ in range(60):
        field = ndimage.gaussian_filter(rng.normal(size=(36, 36)), 2.0)
        scores += [d.score for d in detect(_paint(np.clip((field / field.std() - 1) * 4, 0, 1)))]
    assert len(scores) > 200
    assert np.mean(np.array(scores) > 0.9) < 0.03


def test_strange_colours_and_empty_pictures_show_nothing() -> None:
    disc = np.hypot(X, Y) < 5
    for colour in ((0, 0, 0), (255, 255, 255), (120, 120, 120), (0, 255, 255), (255, 0, 255)):
        assert detect(_paint(disc, colour)) == []
    assert detect(_paint(np.zeros((36, 36)))) == []
    noise = np.random.default_rng(0).integers(0, 256, (36, 36, 3), dtype=np.uint8)
    assert all(found.score < 0.3 for found in detect(noise))


def test_any_image_size_and_the_edges() -> None:
    canvas = np.full((50, 70, 3), world.BACKGROUND, dtype=np.uint8)
    picture = world.render(world.Scene((world.Object("cross", "blue", 0, 10, 1, 1),)))[1:11, 1:11]
    canvas[:10, 60:] = picture
    canvas[40:, :10] = picture
    assert {(d.label, d.color, d.box) for d in detect(canvas) if d.score > 0.9} == {
        ("cross", "blue", (60, 0, 70, 10)),
        ("cross", "blue", (0, 40, 10, 50)),
    }


@given(st.floats(0, 1), st.floats(0, 1))
def test_confidence_is_monotone(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert 0 <= confidence(low) <= confidence(high) <= 1
    assert confidence(1.0) == 1.0
