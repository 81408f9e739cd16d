"""A detector for the scenes world: pixels in, coloured shapes with boxes and confidences out.

It looks at the image alone and knows nothing of cells or of what was to be drawn. Every pixel is explained as
a mixture of the background and one colour of the palette; connected pixels of one colour are compared with
stamps of the four shapes at several sizes and places; the best overlap (soft intersection over union) names
the shape.
"""

from __future__ import annotations

import itertools
from collections import Counter
from functools import cache

import numpy as np
from numpy.typing import NDArray

from umcompress.evals.pictures.geneval_rules import Detection
from umcompress.evals.scenes.world import (
    BACKGROUND,
    CELL,
    COLOUR_NAMES,
    COLOURS,
    GRID,
    SHAPES,
    SIZES,
    Image,
    Scene,
    shape_mask,
)

Floats = NDArray[np.float32]

# A pixel further than this from every mixture is of no colour of the world. (Closest colours: 121 apart.)
COLOUR_LIMIT = 60.0
MINIMUM_PIXELS = 10  # the smallest shape covers 35
SOLID = 0.5  # coverage from which a pixel can join a component

# Overlap -> confidence, linear in between. GenEval finds an object above 0.3 and counts one above 0.9.
# Different shapes of one size overlap by 0.79 at most (a circle in a square), so above 0.8 there is one shape
# and no other; a half circle or an L overlaps by less than 0.65 with any.
_OVERLAPS = (0.50, 0.65, 0.80, 1.0)
_CONFIDENCES = (0.0, 0.3, 0.9, 1.0)
_WINDOW = 20  # pixels; holds the largest stamp at its furthest shift
_SHIFTS = range(-1, 2)
_BLURS = (0.0, 0.6)  # in pixels: a decoder's edges are softer than a renderer's


def confidence(overlap: float) -> float:
    """Overlap with the best stamp, 0..1, to a score, 0..1; monotone."""
    return float(np.interp(overlap, _OVERLAPS, _CONFIDENCES))


@cache
def _stamps() -> tuple[Floats, Floats, tuple[tuple[str, int, int, int], ...]]:
    """Stamps (T, window*window), their areas (T,), and (shape, size, x, y) of each in the window."""
    from scipy import ndimage

    stamps, kinds = [], []
    sizes = range(min(SIZES) - 1, max(SIZES) + 2)
    for shape, size, blur, down, right in itertools.product(SHAPES, sizes, _BLURS, _SHIFTS, _SHIFTS):
        x, y = ((_WINDOW - size) // 2 + shift for shift in (right, down))
        window = np.zeros((_WINDOW, _WINDOW), dtype=np.float32)
        window[y : y + size, x : x + size] = shape_mask(shape, size)
        stamps.append(ndimage.gaussian_filter(window, blur).ravel() if blur else window.ravel())
        kinds.append((shape, size, x, y))
    stacked = np.stack(stamps)
    return stacked, stacked.sum(axis=1), tuple(kinds)


def coverage(image: Image) -> tuple[Floats, NDArray[np.intp]]:
    """Image (H, W, 3) -> how much each pixel is covered (H, W), 0..1, and by which colour (H, W)."""
    background = np.array(BACKGROUND, dtype=np.float32)
    inks = np.array([COLOURS[name] for name in COLOUR_NAMES], dtype=np.float32) - background  # (C, 3)
    pixels = image.astype(np.float32) - background  # (H, W, 3)
    alpha = np.clip(pixels @ inks.T / (inks**2).sum(axis=1), 0.0, 1.0)  # (H, W, C)
    distance = np.linalg.norm(pixels[:, :, None] - alpha[..., None] * inks, axis=-1)  # (H, W, C)
    nearest = distance.argmin(axis=-1)
    pick = nearest[..., None]
    covered = np.take_along_axis(alpha, pick, axis=-1)[..., 0]
    covered[np.take_along_axis(distance, pick, axis=-1)[..., 0] > COLOUR_LIMIT] = 0.0
    return covered, nearest


def _fit(covered: Floats, component: NDArray[np.bool_]) -> tuple[str, float, tuple[int, int, int, int]]:
    """The best stamp for one component: shape, overlap, box."""
    rows, columns = np.nonzero(component)
    top = (int(rows.min()) + int(rows.max()) + 1 - _WINDOW) // 2
    left = (int(columns.min()) + int(columns.max()) + 1 - _WINDOW) // 2
    window = np.zeros((_WINDOW, _WINDOW), dtype=np.float32)
    y1, x1 = max(top, 0), max(left, 0)
    seen = covered[y1 : top + _WINDOW, x1 : left + _WINDOW]
    window[y1 - top : y1 - top + seen.shape[0], x1 - left : x1 - left + seen.shape[1]] = seen
    stamps, areas, kinds = _stamps()
    shared = np.minimum(stamps, window.ravel()).sum(axis=1)
    overlaps = shared / (areas + covered.sum() - shared)  # what lies outside the window counts against
    best = int(overlaps.argmax())
    shape, size, x, y = kinds[best]
    return shape, float(overlaps[best]), (left + x, top + y, left + x + size, top + y + size)


def detect(image: Image) -> list[Detection]:
    """Objects in an image (H, W, 3) uint8, best first. One detection a component, its most likely shape."""
    from scipy import ndimage

    covered, nearest = coverage(image)
    found: list[Detection] = []
    for index, colour in enumerate(COLOUR_NAMES):
        own = np.where(nearest == index, covered, np.float32(0))
        labels, number = ndimage.label(own >= SOLID)
        for label in range(1, number + 1):
            component = labels == label
            if int(component.sum()) < MINIMUM_PIXELS:
                continue
            # The soft rim belongs to the shape: it is what tells a small circle from a small square.
            rim = ndimage.binary_dilation(component, np.ones((3, 3), dtype=bool))
            shape, overlap, box = _fit(np.where(rim, own, np.float32(0)), component)
            found.append(Detection(shape, box, confidence(overlap), colour))
    return sorted(found, key=lambda thing: -thing.score)


def cell_of(detection: Detection) -> int:
    """The grid cell that holds a detection's centre, in reading order."""
    x1, y1, x2, y2 = detection.box
    column, row = int((x1 + x2) / 2 // CELL), int((y1 + y2) / 2 // CELL)
    return min(max(row, 0), GRID - 1) * GRID + min(max(column, 0), GRID - 1)


def agrees(image: Image, scene: Scene, threshold: float = 0.3) -> bool:
    """Whether the detector sees just the scene's objects: shape, colour and cell of each, and no more."""
    seen = Counter((d.label, d.color, cell_of(d)) for d in detect(image) if d.score > threshold)
    return seen == Counter((o.shape, o.colour, o.cell) for o in scene.objects)
