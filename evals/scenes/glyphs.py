"""The shapes of the scenes world and how they are filled: masks of 12 x 12 pixels, inked or not.

Many of them differ in a few pixels only (a hexagon from a circle, a house from a pentagon): a painter must know
each one, not a rough blob.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Mask: TypeAlias = "NDArray[np.bool_]"
Inside: TypeAlias = Callable[[Any, Any], Any]

SIZE = 12
FILLS = ("plain", "outlined", "striped", "dotted")

# Each takes x (to the right) and y (downwards), both in -1..1 over the box, and says what is inside.
_INSIDE: dict[str, Inside] = {
    "circle": lambda x, y: x**2 + y**2 <= 1,
    "leaf": lambda x, y: abs(x - y) <= 1.25 - 1.1 * ((x + y) / 2) ** 2,
    "hexagon": lambda x, y: abs(x) + abs(y) / 2 <= 1.05,
    "square": lambda x, y: abs(x) + abs(y) >= 0,
    "pentagon": lambda x, y: (y >= abs(x) - 1) & (abs(x) <= 1.1 - 0.35 * (y + 0.1)),
    "house": lambda x, y: (y >= abs(x) - 1) & ((abs(x) <= 0.7) | (y <= 0)),
    "shield": lambda x, y: (y <= 0) | (abs(x) <= 1.05 - y**2),
    "drop": lambda x, y: (x**2 + (y - 0.3) ** 2 <= 0.5) | ((y < 0.1) & (abs(x) <= (y + 1) * 0.65)),
    "heart": lambda x, y: ((abs(x) - 0.5) ** 2 + (y + 0.45) ** 2 <= 0.3) | ((y >= -0.4) & (abs(x) <= 0.98 - y)),
    "triangle": lambda x, y: abs(x) <= (y + 1) / 2 + 0.05,
    "wedge": lambda x, y: abs(x) <= (1 - y) / 2 + 0.05,
    "tree": lambda x, y: ((y <= 0.5) & (abs(x) <= (y + 1) * 0.65)) | ((y > 0.5) & (abs(x) <= 0.3)),
    "arrow": lambda x, y: (abs(x) <= y + 1) & ((y <= 0) | (abs(x) <= 0.35)),
    "cup": lambda x, y: (abs(x) <= 1 - 0.4 * (y + 1) / 2) & ~((y < -0.3) & (abs(x) <= 0.35)),
    "bowl": lambda x, y: (y >= -0.35) & (x**2 + ((y + 0.35) / 1.35) ** 2 <= 1.02),
    "dome": lambda x, y: (y <= 0.35) & (x**2 + ((y - 0.35) / 1.35) ** 2 <= 1.02),
    "kite": lambda x, y: (abs(x) <= (y + 1) * 1.5) & (abs(x) <= (1 - y) * 0.75),
    "diamond": lambda x, y: abs(x) + abs(y) <= 1.02,
    "star": lambda x, y: abs(x) ** 0.6 + abs(y) ** 0.6 <= 1.12,
    "cross": lambda x, y: (abs(x) <= 0.35) | (abs(y) <= 0.35),
    "saltire": lambda x, y: abs(abs(x) - abs(y)) <= 0.36,
    "spool": lambda x, y: abs(x) <= abs(y) + 0.1,
    "bow": lambda x, y: abs(y) <= abs(x) + 0.1,
    "crown": lambda x, y: (y >= 0.1) | (abs(abs(abs(x) - 0.5) - 0.5) <= (y + 1) * 0.3 + 0.05),
}
SHAPES = tuple(_INSIDE)
PLURALS = {shape: f"{shape}s" for shape in SHAPES} | {"cross": "crosses", "leaf": "leaves"}


@cache
def mask(shape: str, fill: str = "plain") -> Mask:
    """(12, 12) boolean: the pixels of a shape that carry ink.  Fills draw on the pixels of the plain shape."""
    import numpy as np

    if shape not in _INSIDE:
        raise ValueError(f"unknown shape {shape!r}; one of {', '.join(SHAPES)}")
    if fill not in FILLS:
        raise ValueError(f"unknown fill {fill!r}; one of {', '.join(FILLS)}")
    centres = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1
    solid: Mask = np.broadcast_to(_INSIDE[shape](centres[None, :], centres[:, None]), (SIZE, SIZE)).copy()
    row, column = np.indices((SIZE, SIZE))
    if fill == "outlined":
        solid &= ~_core(solid)
    elif fill == "striped":
        solid &= row % 3 < 2
    elif fill == "dotted":
        solid &= (row // 2 + column // 2) % 2 == 0
    solid.setflags(write=False)
    return solid


def _core(solid: Mask) -> Mask:
    """The pixels of a mask that have only its pixels around them, corners left out."""
    import numpy as np

    wide = np.pad(solid, 1)
    inner: Mask = wide[1:-1, 1:-1] & wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
    return inner
