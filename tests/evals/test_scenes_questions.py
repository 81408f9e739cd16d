"""Understanding questions: answers worked out a second time from pixels' ground truth, balance, chance."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umcompress.evals.scenes import questions, world
from umcompress.evals.scenes.evaluation import GENERATION_CHANCE, generation_chance

seeds = st.integers(0, 2**32 - 1)
PLACES = [
    ["top left", "top", "top right"], ["left", "center", "right"], ["bottom left", "bottom", "bottom right"],
]  # fmt: skip


def _named(scene: world.Scene, word: str) -> list[world.Object]:
    return [thing for thing in scene.objects if word in (thing.colour, thing.fill)]


def _tally(scene: world.Scene, phrase: str) -> int:
    return len(scene.objects) if phrase == "objects" else len(_named(scene, phrase.split()[0]))


def _place(thing: world.Object) -> str:
    x1, y1, x2, y2 = thing.box
    return PLACES[(y1 + y2) // 32][(x1 + x2) // 32]


def _answer(scene: world.Scene, text: str) -> str:
    """The answer from the text alone, by another road than the one that made the question."""
    if match := re.fullmatch(r"what color is the (.+) object\?", text):
        (thing,) = (o for o in scene.objects if _place(o) == match[1])
        return thing.colour
    if match := re.fullmatch(r"how many (.+) are there\?", text):
        return str(_tally(scene, match[1]))
    if match := re.fullmatch(r"is there a (\w+) object\?", text):
        return "yes" if _named(scene, match[1]) else "no"
    if match := re.fullmatch(r"where is the (\w+) object\?", text):
        (thing,) = _named(scene, match[1])
        return _place(thing)
    if match := re.fullmatch(r"are there more (.+) than (.+)\?", text):
        return "yes" if _tally(scene, match[1]) > _tally(scene, match[2]) else "no"
    match = re.fullmatch(r"is the (\w+) object (left of|right of|above|below) the (\w+) object\?", text)
    assert match, text
    (first,), (second,) = _named(scene, match[1]), _named(scene, match[3])
    a, b = first.box, second.box
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
    twins = world.make_scene([world.Object("circle", "red", "plain", cell, 1, 1) for cell in (0, 1)])
    rng = np.random.default_rng(0)
    assert questions.sample_questions(rng, twins, 3, ["position"]) == []
    assert {q.kind for q in questions.sample_questions(rng, twins, 9)} == set(questions.KINDS) - {"position"}


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
    assert set(answers["where is the W object?"]) == set(world.CELL_NAMES)
    assert set(answers["how many objects are there?"]) == set("12345")
    assert set(answers["how many F objects are there?"]) >= set("01234")


def test_description_names_everything_in_reading_order() -> None:
    scene = world.make_scene(
        [world.Object("square", "blue", "dotted", 4, 1, 1), world.Object("circle", "red", "plain", 0, 1, 3)]
    )
    assert questions.describe(scene) == "plain red circle top left, dotted blue square center"
    assert questions.describe(scene, shapes=False) == "plain red top left, dotted blue center"


def test_chance_is_what_a_blind_guesser_gets() -> None:
    levels = questions.chance_levels()
    assert tuple(levels) == questions.KINDS
    assert levels == questions.CHANCE
    assert generation_chance() == GENERATION_CHANCE
    expected = {"color": 0.17, "count": 0.35, "existence": 0.50, "position": 0.29, "comparison": 0.51}
    for kind, value in expected.items():
        assert abs(levels[kind] - value) < 0.03, kind
