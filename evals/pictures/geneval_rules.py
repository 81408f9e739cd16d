"""GenEval's rules: is an image right, given what a detector found in it?

Written from the definition (Ghosh et al., "GenEval", 2023; github.com/djghosh13/geneval), in pure Python. The
detector and the colour classifier stay outside, so that these rules judge any benchmark of GenEval's form.
"""

from __future__ import annotations

import math
import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Detection:
    """One found object: its class, box (x1, y1, x2, y2), score in 0..1; a colour if the detector knows it."""

    label: str
    box: Box
    score: float
    color: str | None = None
    mask: Any = None


Classifier = Callable[[Sequence[Detection], str], Sequence[str]]
"""(objects of one class, the class) -> their colours in the same order."""


@dataclass(frozen=True, slots=True)
class Options:
    """GenEval's settings; `counting_threshold` is for the tag "counting" alone. No NMS at max_overlap 1."""

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    position_threshold: float = 0.1


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason` is empty if correct; `kept` holds what counted as found, by class, best first."""

    correct: bool
    reason: str
    kept: dict[str, tuple[Detection, ...]]


def own_colors(objects: Sequence[Detection], label: str) -> list[str]:
    """The classifier for detectors that know colours. ValueError if one is missing."""
    colors = [thing.color for thing in objects if thing.color is not None]
    if len(colors) != len(objects):
        raise ValueError(f"a detection of {label!r} has no colour; pass a classifier to judge()")
    return colors


def _float32(value: float) -> float:
    """Detectors score in float32, where 0.3 is not above 0.3; as Python floats it would be."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


def iou(a: Box, b: Box) -> float:
    """Overlap of two boxes whose corners are pixels that belong to them (hence the +1)."""

    def area(x1: float, y1: float, x2: float, y2: float) -> float:
        return max(x2 - x1 + 1, 0.0) * max(y2 - y1 + 1, 0.0)

    shared = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    union = area(*a) + area(*b) - shared
    return shared / union if union else 0.0


def keep(
    detections: Iterable[Detection], threshold: float, options: Options
) -> dict[str, tuple[Detection, ...]]:
    """What counts as found, by class: above the threshold, best first, at most `max_objects`, then NMS."""
    by_label: dict[str, list[Detection]] = defaultdict(list)
    for thing in detections:
        if _float32(thing.score) > _float32(threshold):
            by_label[thing.label].append(thing)
    kept: dict[str, tuple[Detection, ...]] = {}
    for label, things in by_label.items():
        # Of equal scores the later comes first, as in a reversed ascending sort.
        order = sorted(range(len(things)), key=lambda i: (_float32(things[i].score), i), reverse=True)
        best = [things[i] for i in order[: options.max_objects]]
        chosen: list[Detection] = []
        for thing in best:
            if options.max_overlap == 1 or all(
                iou(thing.box, other.box) < options.max_overlap for other in chosen
            ):
                chosen.append(thing)
        kept[label] = tuple(chosen)
    return kept


def relations(a: Box, b: Box, threshold: float = 0.1) -> frozenset[str]:
    """Where a lies as seen from b; a diagonal can have two names, and what is near has none."""
    offset, shrunk = [], []
    for axis in (0, 1):
        d = (a[axis] + a[axis + 2]) / 2 - (b[axis] + b[axis + 2]) / 2
        sizes = abs(a[axis + 2] - a[axis]) + abs(b[axis + 2] - b[axis])
        offset.append(d)
        shrunk.append(math.copysign(max(abs(d) - threshold * sizes, 0.0), d))
    if all(abs(d) < 1e-3 for d in shrunk):
        return frozenset()
    length = math.hypot(*offset)  # of the offset before shrinking: near things must be all the straighter
    x, y = shrunk[0] / length, shrunk[1] / length
    tests = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return frozenset(name for name, holds in tests.items() if holds)


def _wrong_colors(
    clause: Mapping[str, Any], objects: Sequence[Detection], classify: Classifier
) -> str | None:
    """A failure if fewer than `count` of the objects have the clause's colour."""
    color, label, count = clause["color"], clause["class"], clause["count"]
    found = Counter(classify(objects, label))
    if found[color] >= count:
        return None
    others = ", ".join(f"{found[name]} {name}" for name in COLORS if found[name])
    return f"expected {color} {label}>={count}, found {found[color]} {color}; and {others}"


def _wrong_position(
    clause: Mapping[str, Any],
    objects: Sequence[Detection],
    matched: Sequence[Sequence[Detection] | None],
    threshold: float,
) -> str | None:
    """A failure unless every object relates as asked to every object of the target's clause."""
    relation, index = clause["position"]
    targets = matched[index]
    if targets is None:
        return f"no target for {clause['class']} to be {relation}"
    for thing in objects:
        for target in targets:
            found = relations(thing.box, target.box, threshold)
            if relation not in found:
                names = " and ".join(sorted(found))
                return f"expected {clause['class']} {relation} target, found {names} target"
    return None


def _include_failure(
    clause: Mapping[str, Any],
    found: Sequence[Detection],
    matched: Sequence[Sequence[Detection] | None],
    options: Options,
    classify: Classifier,
) -> str | None:
    if len(found) < clause["count"]:
        return f"expected {clause['class']}>={clause['count']}, found {len(found)}"
    failure = _wrong_colors(clause, found, classify) if "color" in clause else None
    if failure is None and "position" in clause:
        failure = _wrong_position(clause, found, matched, options.position_threshold)
    return failure


def judge(
    metadata: Mapping[str, Any],
    detections: Iterable[Detection],
    options: Options | None = None,
    classify: Classifier = own_colors,
) -> Verdict:
    """Judge one image by its prompt's metadata. Only the first `count` objects of a class are looked at."""
    options = options or Options()
    threshold = options.counting_threshold if metadata["tag"] == "counting" else options.threshold
    kept = keep(detections, threshold, options)
    failures: list[str] = []
    matched: list[Sequence[Detection] | None] = []
    for clause in metadata.get("include", ()):
        found = kept.get(clause["class"], ())[: clause["count"]]
        failure = _include_failure(clause, found, matched, options, classify)
        matched.append(found if failure is None else None)
        if failure is not None:
            failures.append(failure)
    for clause in metadata.get("exclude", ()):
        number = len(kept.get(clause["class"], ()))
        if number >= clause["count"]:
            failures.append(f"expected {clause['class']}<{clause['count']}, found {number}")
    return Verdict(not failures, "\n".join(failures), kept)
