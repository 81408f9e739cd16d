"""A detector for the scenes world: pixels in, shapes with boxes, looks and confidences out.

Every cell of the grid is compared with every look that the world can draw there, and with an empty cell; the nearest
in pixels names what is seen. How near it is, measured by the ink that the look lays down, is the confidence.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from umcompress.evals.pictures.geneval_rules import Detection
from umcompress.evals.scenes.glyphs import FILLS, SHAPES
from umcompress.evals.scenes.world import (
    BACKGROUND,
    CELL,
    COLOUR_NAMES,
    GRID,
    OFFSETS,
    Image,
    Object,
    cell_picture,
)

Floats = NDArray[np.float32]
_GREY = np.array(BACKGROUND, dtype=np.float32)

# Error -> confidence, linear in between. The error is the squared distance to the nearest look over the squared
# distance of that look to an empty cell: 0 is exact, and an empty cell has 1 from all of them. GenEval finds an object
# above 0.3 and counts one above 0.9.
_ERRORS = (0.0, 0.2, 0.5, 0.7)
_CONFIDENCES = (1.0, 0.91, 0.3, 0.0)


@dataclass(frozen=True)
class _Looks:
    """All that a cell can show: `objects` as if in cell 0, `pixels` (N, 768) less the background, `norms` (N,)."""

    objects: tuple[Object, ...]
    pixels: Floats
    norms: Floats


@cache
def _looks() -> _Looks:
    drawn = itertools.product(SHAPES, COLOUR_NAMES, FILLS, OFFSETS, OFFSETS)
    objects = tuple(Object(shape, colour, fill, 0, dx, dy) for shape, colour, fill, dx, dy in drawn)
    pictures = [cell_picture(o.shape, o.colour, o.fill, o.dx, o.dy) for o in objects]
    pixels = np.stack(pictures).astype(np.float32) - _GREY
    flat = pixels.reshape(len(objects), -1)
    return _Looks(objects, flat, (flat**2).sum(axis=1))


def confidence(error: float) -> float:
    """Error of the nearest look, to a score, 0..1; monotone."""
    return float(np.interp(error, _ERRORS, _CONFIDENCES))


def _cells(image: Image) -> Floats:
    """(48, 48, 3) -> (9, 768), less the background."""
    pixels = image.astype(np.float32) - _GREY
    cut: Floats = pixels.reshape(GRID, CELL, GRID, CELL, 3).transpose(0, 2, 1, 3, 4).reshape(GRID * GRID, -1)
    return cut


def detect(image: Image) -> list[Detection]:
    """Objects in an image (48, 48, 3) uint8, best first: at most one a cell, its nearest look."""
    if image.shape != (GRID * CELL, GRID * CELL, 3):
        raise ValueError(f"the detector reads pictures of {GRID * CELL} x {GRID * CELL} pixels, not {image.shape}")
    looks, cells = _looks(), _cells(image)
    ink = (cells**2).sum(axis=1)
    distances = np.maximum(ink[:, None] - 2 * cells @ looks.pixels.T + looks.norms, 0)
    found = []
    for cell, nearest in enumerate(distances.argmin(axis=1).tolist()):
        distance = float(distances[cell, nearest])
        if distance >= ink[cell]:  # an empty cell is nearer
            continue
        like = looks.objects[nearest]
        seen = Object(like.shape, like.colour, like.fill, cell, like.dx, like.dy)
        x1, y1, x2, y2 = (float(side) for side in seen.box)
        score = confidence(distance / float(looks.norms[nearest]))
        found.append(Detection(seen.shape, (x1, y1, x2, y2), score, seen.look))
    return sorted(found, key=lambda thing: -thing.score)
