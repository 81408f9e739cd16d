"""The scenes world: drawing, ground truth, and the split."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umcompress.evals.scenes import glyphs, world

seeds = st.integers(0, 2**32 - 1)


def _things(cell: int) -> st.SearchStrategy[world.Object]:
    offset = st.sampled_from(world.OFFSETS)
    return st.builds(
        world.Object, st.sampled_from(glyphs.SHAPES), st.sampled_from(world.COLOUR_NAMES),
        st.sampled_from(glyphs.FILLS), st.just(cell), offset, offset,
    )  # fmt: skip


scenes = (
    st.sets(st.integers(0, 8), min_size=1)
    .flatmap(lambda cells: st.tuples(*(_things(cell) for cell in sorted(cells))))
    .map(lambda things: world.make_scene(things))
)


@given(scenes)
def test_drawing_stays_in_its_box_and_is_the_filled_shape(scene: world.Scene) -> None:
    image = world.render(scene)
    assert image.shape == (48, 48, 3)
    assert image.dtype == np.uint8
    ink = (image != world.BACKGROUND).any(axis=-1)
    for thing in scene.objects:
        x1, y1, x2, y2 = thing.box
        assert np.array_equal(ink[y1:y2, x1:x2], glyphs.mask(thing.shape, thing.fill))
        assert (image[y1:y2, x1:x2][ink[y1:y2, x1:x2]] == world.COLOURS[thing.colour]).all()
        ink[y1:y2, x1:x2] = False
    assert not ink.any()


@given(scenes)
def test_a_pixel_of_background_around_every_cell(scene: world.Scene) -> None:
    ink = (world.render(scene) != world.BACKGROUND).any(axis=-1).reshape(3, 16, 3, 16)
    assert not ink[:, [0, 15]].any()
    assert not ink[:, :, :, [0, 15]].any()


def test_no_two_shapes_and_fills_look_alike() -> None:
    """In pixels, wherever in the cell they stand; what differs by less could not be told from its picture."""
    padded = [
        np.pad(glyphs.mask(shape, fill), ((dy, 4 - dy), (dx, 4 - dx)))
        for shape in glyphs.SHAPES for fill in glyphs.FILLS for dx in world.OFFSETS for dy in world.OFFSETS
    ]  # fmt: skip
    flat = np.stack(padded).reshape(len(padded), -1).astype(int)
    differ = (flat[:, None, :] != flat[None]).sum(-1)
    np.fill_diagonal(differ, 99)
    assert differ.min() >= 4
    assert {fill for fill in glyphs.FILLS if glyphs.mask("square", fill).all()} == {"plain"}


@given(scenes, scenes)
def test_different_scenes_have_different_keys_and_pictures(a: world.Scene, b: world.Scene) -> None:
    assert (a == b) == (world.scene_key(a) == world.scene_key(b))
    assert (a == b) == np.array_equal(world.render(a), world.render(b))


@settings(max_examples=25)
@given(seeds, st.sampled_from(["training", "evaluation"]))
def test_sampling_keeps_to_its_split_and_repeats(seed: int, split: world.Split) -> None:
    scene = world.sample_scene(np.random.default_rng(seed), split)
    assert world.is_evaluation(scene) == (split == "evaluation")
    assert 1 <= len(scene.objects) <= 5
    assert scene == world.sample_scene(np.random.default_rng(seed), split)


def test_splits_are_disjoint_and_a_tenth_is_for_evaluation() -> None:
    rng = np.random.default_rng(0)
    training = {world.scene_key(world.sample_scene(rng)) for _ in range(3000)}
    evaluation = {world.scene_key(world.sample_scene(rng, "evaluation")) for _ in range(3000)}
    assert not training & evaluation
    keys = [str(i) for i in range(20_000)]
    assert abs(sum(world.bucket(key, 10) == 0 for key in keys) / len(keys) - 0.1) < 0.01


def test_number_of_objects_can_be_asked_for() -> None:
    rng = np.random.default_rng(0)
    assert [len(world.sample_scene(rng, objects=n).objects) for n in (1, 3, 9)] == [1, 3, 9]


def test_two_objects_in_a_cell_are_refused() -> None:
    thing = world.Object("circle", "red", "plain", 4, 1, 1)
    with pytest.raises(ValueError, match="one a cell"):
        world.Scene((thing, thing))
    with pytest.raises(ValueError, match="unknown shape 'blob'"):
        glyphs.mask("blob")
    with pytest.raises(ValueError, match="unknown fill 'wavy'"):
        glyphs.mask("circle", "wavy")


def test_palette_is_well_separated() -> None:
    inks = np.array([*world.COLOURS.values(), world.BACKGROUND], dtype=float)
    distances = np.linalg.norm(inks[:, None] - inks[None], axis=-1)
    assert distances[~np.eye(len(inks), dtype=bool)].min() > 100


def test_the_world_stays_as_it_is() -> None:
    """Shipped weights are trained on these pictures: a change here needs new weights."""
    rng = np.random.default_rng(0)
    digest = hashlib.sha256()
    for _ in range(200):
        digest.update(world.render(world.sample_scene(rng)).tobytes())
    assert digest.hexdigest()[:16] == "9fe829f1d961007d"
