"""Changes of published numbers: intervals held against numbers made anew of items drawn in another way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap

from umcompress.documents.numbers import Made, number, number_interval
from umcompress.documents.scores import change, mean_score, number_changes, score_of_grades, with_numbers
from umcompress.evals.answers._questions import AnsweredQuestion, Question
from umcompress.evals.answers.mme import Mme
from umcompress.evals.answers.mme_rules import TASKS
from umcompress.evals.answers.pope import Pope

F1 = Made(top={"both": 2}, bottom={"said yes": 1, "is yes": 1})


def columns(said: Any, true: Any) -> dict[str, list[float]]:
    both = np.logical_and(said, true)
    return {name: np.asarray(of, float).tolist() for name, of in
            (("said yes", said), ("is yes", true), ("both", both), ("items", said == true))}  # fmt: skip


def f1_change(new: Any, old: Any, true: Any, axis: int = -1) -> Any:
    """By precision and recall, not by sums of columns."""
    found = []
    for said in (new, old):
        right = (said * true).sum(axis)
        precision, recall = right / said.sum(axis), right / true.sum(axis)
        found.append(2 * precision * recall / (precision + recall))
    return found[0] - found[1]


def answers(said: Any, true: Any, kind: str) -> list[AnsweredQuestion]:
    words = ("no", "yes")
    return [
        AnsweredQuestion(Question(f"{kind}/{place}", "?", (), kind, words[truth]), words[answer].capitalize())
        for place, (answer, truth) in enumerate(zip(said, true, strict=True))
    ]


def test_f1_of_pope_as_scipy_draws_it() -> None:
    rng = np.random.default_rng(0)
    new: list[AnsweredQuestion] = []
    old: list[AnsweredQuestion] = []
    expected = {}
    for kind, n in (("random", 500), ("popular", 300)):
        true = (rng.random(n) < 0.5).astype(int)
        before = np.where(rng.random(n) < 0.85, true, 1 - true)
        now = np.where((rng.random(n) < 0.1) & (true == 1), 0, before)
        new, old = new + answers(now, true, kind), old + answers(before, true, kind)
        drawn = bootstrap(
            (now, before, true), f1_change, paired=True, vectorized=True, method="percentile", n_resamples=4000, rng=1
        )
        expected[kind] = (float(f1_change(now, before, true)), drawn.confidence_interval)
    benchmark = Pope.model_construct()
    scores = [benchmark.scored(of).model_copy(update={"items_of": "these"}) for of in (new, old)]
    changes = number_changes(*scores)
    for kind, (value, interval) in expected.items():
        found, width = changes[f"{kind} f1"], interval.high - interval.low
        assert found.value == pytest.approx(value) and found.paired
        # A little wider, by one item more that changes.
        assert found.low <= interval.low + 0.02 * width and found.high >= interval.high - 0.02 * width
        assert [found.low, found.high] == pytest.approx([interval.low, interval.high], abs=0.1 * width)
        # Those of the two by themselves are far wider.
        apart = change(*(score.numbers[f"{kind} f1"] for score in scores))
        assert apart.high - apart.low > 1.5 * (found.high - found.low)
    assert set(changes) == {f"{kind} {name}" for kind in expected for name in
                            ("accuracy", "precision", "recall", "yes_ratio", "f1")}  # fmt: skip
    others = number_changes(scores[0], scores[1].model_copy(update={"items_of": "others"}))
    assert others == {}


def test_the_interval_of_f1_holds_the_truth_in_95_of_100_draws() -> None:
    rng, held = np.random.default_rng(1), 0
    share, sure, lost = 0.5, 0.9, 0.15
    right = share * sure, share * sure * (1 - lost)
    said = share * sure + (1 - share) * (1 - sure)
    truth = 2 * right[1] / (said - share * sure * lost + share) - 2 * right[0] / (said + share)
    for _ in range(300):
        true = rng.random(200) < share
        before = np.where(rng.random(200) < sure, true, ~true)
        now = before & ~((rng.random(200) < lost) & true)
        ends = number_interval(F1, columns(now, true), columns(before, true), [200], True)
        assert ends is not None
        held += ends[0] <= truth <= ends[1]
    assert 0.92 <= held / 300 <= 0.985


def test_points_of_mme_change_as_the_shares_that_they_are_made_of() -> None:
    rng = np.random.default_rng(2)

    def answered(accuracy: float, seed: int) -> list[AnsweredQuestion]:
        draw = np.random.default_rng(seed)
        return [
            AnsweredQuestion(Question(f"{task}/{picture}/{truth}", "?", (), task, truth, f"{task}/{picture}"),
                             truth if draw.random() < accuracy else "maybe")
            for task in TASKS for picture in range(12) for truth in ("Yes", "No")
        ]  # fmt: skip

    benchmark = Mme.model_construct()
    new, old = (
        benchmark.scored(answered(accuracy, 3)).model_copy(update={"items_of": "these"}) for accuracy in (0.8, 0.85)
    )
    changes, whole = number_changes(new, old), change(new, old)
    points = changes["MME"]
    expected = [2800 * x for x in (whole.value, whole.low, whole.high)]
    assert [points.value, points.low, points.high] == pytest.approx(expected)
    # Cognition alone, drawn anew: four tasks of 12 pictures, each task with the same weight.
    grades = np.array(new.items).reshape(14, 12)[-4:], np.array(old.items).reshape(14, 12)[-4:]
    picked = rng.integers(0, 12, (4000, 4, 12))
    drawn = 200 * sum(
        (grades[0][task][picked[:, task]] - grades[1][task][picked[:, task]]).mean(1) for task in range(4)
    )
    found, ends = changes["Cognition"], np.quantile(drawn, [0.025, 0.975])
    assert found.value == pytest.approx(new.numbers["Cognition"].value - old.numbers["Cognition"].value)
    assert found.low == pytest.approx(ends[0], abs=0.25 * (ends[1] - ends[0])) and found.low < ends[0]
    assert found.high == pytest.approx(ends[1], abs=0.25 * (ends[1] - ends[0])) and found.high > ends[1]


def test_sums_over_all_kinds_and_scales() -> None:
    """What MMBench does with the rows of its questions, and CLIP scores by a hundred."""
    rng = np.random.default_rng(4)
    rows = rng.integers(2, 5, 200)
    right = [rng.binomial(rows, chance) for chance in (0.6, 0.7)]
    made = {"all": Made(top={"right": 1}, bottom={"rows": 1}, pooled=True), "x 100": Made(scale=100)}
    scores = []
    for of in right:
        kinds = {"a": list(of[:80] == rows[:80]), "b": list(of[80:] == rows[80:])}
        whole = score_of_grades(kinds, "x", average="kinds")
        shares = (of / rows).tolist()
        numbers = {"all": mean_score(shares), "x 100": mean_score([100 * share for share in shares])}
        values = {"right": of.tolist(), "rows": rows.tolist()}
        scores.append(with_numbers(whole, numbers | {"nothing": numbers["all"]}, made, values))
    found = number_changes(*scores)
    drawn = bootstrap(
        (*right, rows), lambda new, old, n, axis: (new.sum(axis) - old.sum(axis)) / n.sum(axis), paired=True,
        vectorized=True, method="percentile", n_resamples=4000, rng=1,
    ).confidence_interval
    width = drawn.high - drawn.low
    assert [found["all"].low, found["all"].high] == pytest.approx([drawn.low, drawn.high], abs=0.08 * width)
    assert number(made["all"], scores[0].columns, scores[0].item_groups) == pytest.approx(right[0].sum() / rows.sum())
    whole_change = change(*scores)
    assert [found["x 100"].low, found["x 100"].high] == pytest.approx([100 * whole_change.low, 100 * whole_change.high])
    assert "nothing" not in found and "nothing" not in scores[0].made


def test_nothing_changed_is_not_known_for_certain_and_no_meaning_gives_no_interval() -> None:
    true = np.arange(100) % 2 == 0
    same = number_interval(F1, columns(true, true), columns(true, true), [100], True)
    assert same is not None and -0.08 < same[0] < 0 < same[1] < 0.08
    never = np.zeros(100, bool)
    precision = Made(top={"both": 1}, bottom={"said yes": 1})
    assert number_interval(precision, columns(never, true), columns(true, true), [100], True) is None
    assert number(precision, columns(never, true), [100]) is None
