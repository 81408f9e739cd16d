"""The world of scenes: coloured shapes on a 3x3 grid, drawn from a seed, with exact ground truth.

An image is 36x36x3 uint8. A cell is 12 pixels wide and holds at most one object, which keeps at least one
pixel of background to every side of its cell, so that neighbours never touch.
Scenes are split by a hash of their canonical key: a tenth of them is for evaluation only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeAlias

# The options of the evaluation are listed without drawing anything: numpy is imported by what draws.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Split = Literal["training", "evaluation"]
Image: TypeAlias = "NDArray[np.uint8]"

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 200, 30),
    "purple": (150, 50, 180),
}
COLOUR_NAMES = tuple(COLOURS)
BACKGROUND = (230, 230, 230)
GRID = 3
CELL = 12
IMAGE_SIZE = GRID * CELL
SIZES = (8, 9, 10)
MAX_OBJECTS = 5
CELL_NAMES = (
    "top left", "top", "top right",
    "left", "center", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
_SUPERSAMPLING = 4
_EVALUATION_SHARE = 10


@dataclass(frozen=True, slots=True)
class Object:
    """One shape. `cell` counts in reading order; `dx`, `dy` place its box inside the cell, in 1..11-size."""

    shape: str
    colour: str
    cell: int
    size: int
    dx: int
    dy: int

    @property
    def row(self) -> int:
        return self.cell // GRID

    @property
    def column(self) -> int:
        return self.cell % GRID

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x1, y1, x2, y2 in pixels; x2 and y2 are one past the last pixel."""
        x, y = self.column * CELL + self.dx, self.row * CELL + self.dy
        return x, y, x + self.size, y + self.size


@dataclass(frozen=True, slots=True)
class Scene:
    """Objects in reading order, one a cell."""

    objects: tuple[Object, ...]

    def __post_init__(self) -> None:
        cells = [thing.cell for thing in self.objects]
        if cells != sorted(set(cells)):
            raise ValueError(f"objects must be in reading order, one a cell; got cells {cells}")


def shape_mask(shape: str, size: int, supersampling: int = _SUPERSAMPLING) -> NDArray[np.float32]:
    """Coverage (size, size) in 0..1 of a shape that fills its box, from supersampled points."""
    import numpy as np

    fine = size * supersampling
    centres = (np.arange(fine) + 0.5) / fine
    x, y = centres[None, :], centres[:, None]
    if shape == "circle":
        inside = (x - 0.5) ** 2 + (y - 0.5) ** 2 <= 0.25
    elif shape == "square":
        inside = np.ones((fine, fine), dtype=bool)
    elif shape == "triangle":
        inside = np.abs(x - 0.5) <= y / 2
    elif shape == "cross":
        inside = (np.abs(x - 0.5) <= 1 / 6) | (np.abs(y - 0.5) <= 1 / 6)
    else:
        raise ValueError(f"unknown shape {shape!r}; one of {', '.join(SHAPES)}")
    blocks = inside.reshape(size, supersampling, size, supersampling)
    coverage: NDArray[np.float32] = blocks.mean(axis=(1, 3)).astype(np.float32)
    return coverage


@cache
def _cell_picture(shape: str, colour: str, size: int, dx: int, dy: int) -> Image:
    """A whole cell, drawn once: there are few of them, and a scene is only pasted together."""
    import numpy as np

    alpha = np.zeros((CELL, CELL, 1), dtype=np.float32)
    alpha[dy : dy + size, dx : dx + size, 0] = shape_mask(shape, size)
    background, ink = np.array(BACKGROUND, np.float32), np.array(COLOURS[colour], np.float32)
    picture: Image = np.rint(background + alpha * (ink - background)).astype(np.uint8)
    picture.setflags(write=False)
    return picture


def render(scene: Scene) -> Image:
    """The image (36, 36, 3) of a scene."""
    import numpy as np

    image = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    image[:] = BACKGROUND
    for thing in scene.objects:
        x, y = thing.column * CELL, thing.row * CELL
        image[y : y + CELL, x : x + CELL] = _cell_picture(
            thing.shape, thing.colour, thing.size, thing.dx, thing.dy
        )
    return image


def scene_key(scene: Scene) -> str:
    """One string for one scene: equal scenes have equal keys and different ones different keys."""
    return "|".join(f"{o.cell}:{o.colour}:{o.shape}:{o.size}:{o.dx}:{o.dy}" for o in scene.objects)


def bucket(text: str, buckets: int) -> int:
    """A stable bucket of a string; the same on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % buckets


def is_evaluation(scene: Scene) -> bool:
    """Whether a scene is set aside for evaluation (one in ten)."""
    return bucket(scene_key(scene), _EVALUATION_SHARE) == 0


def place(rng: np.random.Generator, shape: str, colour: str, cell: int) -> Object:
    """An object of a random size at a random place in its cell."""
    u = rng.random(3)
    size = SIZES[int(u[0] * len(SIZES))]
    room = CELL - 1 - size
    return Object(shape, colour, cell, size, 1 + int(u[1] * room), 1 + int(u[2] * room))


def make_scene(objects: Sequence[Object]) -> Scene:
    """A scene of objects in any order."""
    return Scene(tuple(sorted(objects, key=lambda thing: thing.cell)))


def sample_scene(rng: np.random.Generator, split: Split = "training", objects: int | None = None) -> Scene:
    """A random scene of one split with `objects` objects, or 1..5 of them."""
    wanted = split == "evaluation"
    while True:
        count = objects if objects is not None else 1 + int(rng.random() * MAX_OBJECTS)
        cells = rng.random(GRID * GRID).argsort()[:count].tolist()
        looks = rng.random((count, 2))
        things = [
            place(
                rng,
                SHAPES[int(looks[i, 0] * len(SHAPES))],
                COLOUR_NAMES[int(looks[i, 1] * len(COLOUR_NAMES))],
                cell,
            )
            for i, cell in enumerate(cells)
        ]
        scene = make_scene(things)
        if is_evaluation(scene) == wanted:
            return scene
