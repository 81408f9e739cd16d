"""The world of scenes: filled, coloured shapes on a 3x3 grid, drawn from a seed, with exact ground truth.

An image is 48x48x3 uint8. A cell is 16 pixels wide and holds at most one object of 12 pixels at one of four places,
which keeps at least one pixel of background to every side of its cell, so that neighbours never touch. A look is what
an object in its cell can look like: shape x colour x fill x place.
Scenes are split by a hash of their canonical key: a tenth of them is for evaluation only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeAlias

from umcompress.evals.scenes.glyphs import FILLS, SHAPES, SIZE, mask

# The options of the evaluation are listed without drawing anything: numpy is imported by what draws.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Split = Literal["training", "evaluation"]
Image: TypeAlias = "NDArray[np.uint8]"

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 200, 30),
    "purple": (150, 50, 180),
    "black": (30, 30, 30),
}
COLOUR_NAMES = tuple(COLOURS)
BACKGROUND = (230, 230, 230)
GRID = 3
CELL = 16
IMAGE_SIZE = GRID * CELL
OFFSETS = (1, 3)
MAX_OBJECTS = 5
CELL_NAMES = (
    "top left", "top", "top right",
    "left", "center", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
_EVALUATION_SHARE = 10


@dataclass(frozen=True, slots=True)
class Object:
    """One shape. `cell` counts in reading order; `dx`, `dy` place its box inside the cell, each one of OFFSETS."""

    shape: str
    colour: str
    fill: str
    cell: int
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
        return x, y, x + SIZE, y + SIZE

    @property
    def look(self) -> str:
        """Fill and colour, as prompts and questions name them together."""
        return f"{self.fill} {self.colour}"


LOOKS = tuple(f"{fill} {colour}" for fill in FILLS for colour in COLOUR_NAMES)


@dataclass(frozen=True, slots=True)
class Scene:
    """Objects in reading order, one a cell."""

    objects: tuple[Object, ...]

    def __post_init__(self) -> None:
        cells = [thing.cell for thing in self.objects]
        if cells != sorted(set(cells)):
            raise ValueError(f"objects must be in reading order, one a cell; got cells {cells}")


@cache
def cell_picture(shape: str, colour: str, fill: str, dx: int, dy: int) -> Image:
    """A whole cell, drawn once: there are few of them, and a scene is only pasted together."""
    import numpy as np

    picture: Image = np.empty((CELL, CELL, 3), dtype=np.uint8)
    picture[:] = BACKGROUND
    picture[dy : dy + SIZE, dx : dx + SIZE][mask(shape, fill)] = COLOURS[colour]
    picture.setflags(write=False)
    return picture


def render(scene: Scene) -> Image:
    """The image (48, 48, 3) of a scene."""
    import numpy as np

    image = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    image[:] = BACKGROUND
    for thing in scene.objects:
        x, y = thing.column * CELL, thing.row * CELL
        image[y : y + CELL, x : x + CELL] = cell_picture(
            thing.shape, thing.colour, thing.fill, thing.dx, thing.dy
        )
    return image


def scene_key(scene: Scene) -> str:
    """One string for one scene: equal scenes have equal keys and different ones different keys."""
    return "|".join(f"{o.cell}:{o.colour}:{o.fill}:{o.shape}:{o.dx}:{o.dy}" for o in scene.objects)


def bucket(text: str, buckets: int) -> int:
    """A stable bucket of a string; the same on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % buckets


def is_evaluation(scene: Scene) -> bool:
    """Whether a scene is set aside for evaluation (one in ten)."""
    return bucket(scene_key(scene), _EVALUATION_SHARE) == 0


def place(rng: np.random.Generator, shape: str, look: str, cell: int) -> Object:
    """An object of a look (fill and colour) at a random place in its cell."""
    u = rng.random(2)
    fill, colour = look.split()
    dx, dy = (OFFSETS[int(part * len(OFFSETS))] for part in u)
    return Object(shape, colour, fill, cell, dx, dy)


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
            place(rng, SHAPES[int(looks[i, 0] * len(SHAPES))], LOOKS[int(looks[i, 1] * len(LOOKS))], cell)
            for i, cell in enumerate(cells)
        ]
        scene = make_scene(things)
        if is_evaluation(scene) == wanted:
            return scene
