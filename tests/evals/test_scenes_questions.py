"""Understanding questions: answers worked out a second time from pixels' ground truth, balance, chance."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umcompress.evals.scenes import questions, world

seeds = st.integers(0, 2**32 - 1)
SINGULAR = {"circles": "circle", "squares": "square", "triangles": "triangle", "crosses": "cross"}
PLACES = [
    ["top left", "top", "top right"], ["left", "center", "right"], ["bottom left", "bottom", "bottom right"],
]  # fmt: skip


def _tally(scene: world.Scene, phrase: str) -> int:
    if phrase == "objects":
        return len(scene.objects)
    if phrase.endswith(" objects"):
        return sum(o.colour == phrase.split()[0] for o in scene.objects)
    return sum(o.shape == SINGULAR[phrase] for o in scene.objects)


def _only(scene: world.Scene, look: str) -> world.Object:
    (thing,) = (o for o in scene.objects if f"{o.colour} {o.shape}" == look)
    return thing


def _answer(scene: world.Scene, text: str) -> str:
    """The answer from the text alone, by another road than the one that made the question."""
    if match := re.fullmatch(r"what color is the (\w+)\?", text):
        (thing,) = (o for o in scene.objects if o.shape == match[1])
        return thing.colour
    if match := re.fullmatch(r"how many (.+) are there\?", text):
        return str(_tally(scene, match[1]))
    if match := re.fullmatch(r"is there a (\w+) (\w+)\?", text):
        return "yes" if any((o.colour, o.shape) == match.groups() for o in scene.objects) else "no"
    if match := re.fullmatch(r"where is the (\w+ \w+)\?", text):
        x1, y1, x2, y2 = _only(scene, match[1]).box
        return PLACES[(y1 + y2) // 24][(x1 + x2) // 24]
    if match := re.fullmatch(r"are there more (.+) than (.+)\?", text):
        return "yes" if _tally(scene, match[1]) > _tally(scene, match[2]) else "no"
    match = re.fullmatch(r"is the (\w+ \w+) (left of|right of|above|below) the (\w+ \w+)\?", text)
    assert match, text
    a, b = _only(scene, match[1]).box, _only(scene, match[3]).box
    axis = 0 if match[2] in ("left of", "right of") else 1
    gap = (a[axis] + a[axis + 2] - b[axis] - b[axis + 2]) / 2
    assert abs(gap) > world.CELL / 2  # never asked of two in one row or column
    return "yes" if (gap < 0) == (match[2] in ("left of", "above")) else "no"


@settings(max_examples=200)
@given(seeds, st.integers(1, world.MAX_OBJECTS), st.integers(1, 10))
def test_answers_are_right_and_kinds_varied(seed: int, objects: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    scene = world.sample_scene(rng, objects=objects)
    asked = questions.sample_questions(rng, scene, n)
    assert len(asked) == n
    for question in asked:
        assert question.answer == _answer(scene, question.text)
        assert question.answer in questions.answers()
    supported = {q.kind for q in questions.sample_questions(rng, scene, 5)}
    assert len({question.kind for question in asked}) >= min(n, len(supported) - 1)


@settings(max_examples=30)
@given(seeds)
def test_questions_repeat_by_seed(seed: int) -> None:
    def draw() -> list[questions.Question]:
        rng = np.random.default_rng(seed)
        return questions.sample_questions(rng, world.sample_scene(rng), 5)

    assert draw() == draw()


def test_kinds_can_be_chosen_and_weighted() -> None:
    rng = np.random.default_rng(0)
    scene = world.sample_scene(rng, objects=3)
    kinds = Counter(
        q.kind for q in questions.sample_questions(rng, scene, 6, ["count", "count", "existence"])
    )
    assert kinds == {"count": 4, "existence": 2}
    with pytest.raises(KeyError):
        questions.sample_questions(rng, scene, 1, ["mood"])


def test_a_scene_that_supports_no_wanted_kind_gives_no_question() -> None:
    twins = world.make_scene([world.Object("circle", "red", cell, 8, 1, 1) for cell in (0, 1)])
    rng = np.random.default_rng(0)
    assert questions.sample_questions(rng, twins, 3, ["color", "position"]) == []
    assert {q.kind for q in questions.sample_questions(rng, twins, 9)} == {"count", "existence", "comparison"}


def test_yes_and_no_are_balanced_and_templates_are_as_promised() -> None:
    rng = np.random.default_rng(3)
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    ties = 0
    for _ in range(3000):
        scene = world.sample_scene(rng, "evaluation")
        for question in questions.sample_questions(rng, scene, 5):
            answers[question.template][question.answer] += 1
            if match := re.fullmatch(r"are there more (.+) than (.+)\?", question.text):
                ties += _tally(scene, match[1]) == _tally(scene, match[2])
    yes_no = {template: tally for template, tally in answers.items() if tally["yes"]}
    assert len(yes_no) == 4
    for template, tally in yes_no.items():
        assert set(tally) == {"yes", "no"}, template
        assert abs(tally["yes"] / tally.total() - 0.5) < 0.05, template
    assert ties < 0.1 * sum(tally.total() for t, tally in answers.items() if "more" in t)
    assert set(answers["where is the C S?"]) == set(world.CELL_NAMES)
    assert set(answers["how many objects are there?"]) == set("12345")
    assert set(answers["how many S are there?"]) >= set("01234")


def test_description_names_everything_in_reading_order() -> None:
    scene = world.make_scene(
        [world.Object("square", "blue", 4, 8, 1, 1), world.Object("circle", "red", 0, 9, 1, 2)]
    )
    assert questions.describe(scene) == "red circle top left, blue square center"


def test_chance_is_what_a_blind_guesser_gets() -> None:
    levels = questions.chance_levels(0, 3000)
    assert tuple(levels) == questions.KINDS
    assert levels == questions.chance_levels.__wrapped__(0, 3000)
    expected = {"color": 0.21, "count": 0.35, "existence": 0.51, "position": 0.28, "comparison": 0.51}
    for kind, value in expected.items():
        assert abs(levels[kind] - value) < 0.03, kind
