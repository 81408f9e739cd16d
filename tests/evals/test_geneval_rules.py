"""GenEval's rules against recorded verdicts of the original, and against their own definition."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import DATA

from umcompress.evals.pictures.geneval_rules import (
    Box,
    Detection,
    Options,
    iou,
    judge,
    keep,
    relations,
)

CASES = [json.loads(line) for line in (DATA / "geneval.jsonl").open()]
coordinate = st.integers(0, 100).map(float)
boxes = st.tuples(coordinate, coordinate, coordinate, coordinate).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)


def _detections(case: dict[str, Any]) -> list[Detection]:
    return [Detection(d["class"], tuple(d["box"]), d["score"], d.get("color")) for d in case["detections"]]


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_recorded_verdicts(case: dict[str, Any]) -> None:
    verdict = judge(case["metadata"], _detections(case), Options(**case.get("options", {})))
    expected = case["expected"]
    assert verdict.correct == expected["correct"]
    assert verdict.reason == expected["reason"]
    kept = {label: [[*d.box, d.score] for d in things] for label, things in verdict.kept.items()}
    assert kept == expected["kept"]


def test_all_cases_are_there() -> None:
    assert len(CASES) == 30
    assert sum(case["expected"]["correct"] for case in CASES) == 8


def test_threshold_is_strict_in_float32() -> None:
    as_stored_by_a_detector = 0.30000001192092896  # float32(0.3) widened to a Python float
    thing = Detection("cup", (0, 0, 1, 1), as_stored_by_a_detector)
    assert keep([thing], 0.3, Options()) == {}


def test_missing_colour_is_an_error() -> None:
    metadata = {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}]}
    with pytest.raises(ValueError, match="no colour"):
        judge(metadata, [Detection("cup", (0, 0, 1, 1), 0.9)])


def test_classifier_sees_only_the_first_objects() -> None:
    seen: list[int] = []

    def classify(objects: Any, label: str) -> list[str]:
        seen.append(len(objects))
        return ["red"] * len(objects)

    metadata = {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}]}
    things = [Detection("cup", (0, 0, 1, 1), score) for score in (0.5, 0.9, 0.7)]
    assert judge(metadata, things, classify=classify).correct
    assert seen == [1]


@given(boxes, boxes)
def test_relations_mirror(a: Box, b: Box) -> None:
    mirror = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert {mirror[name] for name in relations(a, b)} == relations(b, a)


@given(boxes, boxes)
def test_iou_is_symmetric_and_a_share(a: Box, b: Box) -> None:
    assert iou(a, b) == iou(b, a)
    assert 0 <= iou(a, b) <= 1
    assert iou(a, a) == 1


def test_dead_zone_is_measured_against_the_unshrunk_offset() -> None:
    target = (0.0, 0.0, 10.0, 10.0)
    assert relations((2.0, 0.0, 12.0, 10.0), target) == frozenset()  # 2 of 2 pixels are within the threshold
    assert relations((3.9, 0.0, 13.9, 10.0), target) == frozenset()  # 1.9 left of 3.9: under a half
    assert relations((4.1, 0.0, 14.1, 10.0), target) == {"right of"}
    assert relations((20.0, 20.0, 30.0, 30.0), target) == {"right of", "below"}
