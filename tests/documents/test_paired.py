"""Changes of the same items: intervals held against computations made in other ways."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from umcompress.documents.gate import Gate
from umcompress.documents.intervals import paired_interval
from umcompress.documents.report import check_gate
from umcompress.documents.scores import Score, change, printed, printed_change, score_of_grades
from umcompress.evals.text.perplexity import token_weighted


def flipped(better: int, worse: int, n: int) -> tuple[Score, Score]:
    """(new, old) of n items, of which so many got better and worse; of all others half are right."""
    rest = [float(index % 2) for index in range(n - better - worse)]
    new, old = [1.0] * better + [0.0] * worse + rest, [0.0] * better + [1.0] * worse + rest
    return score_of_grades({"all": new}, "these"), score_of_grades({"all": old}, "these")


def test_right_and_wrong_are_marked_as_mcnemars_exact_test_marks_them() -> None:
    for better in range(26):
        for worse in range(better + 1):
            p = binomtest(better, better + worse).pvalue if better else 1.0
            marked = change(*flipped(better, worse, 400)).beyond_noise
            assert marked == (p <= 0.05) or 0.05 < p < 0.065, (better, worse, p)


def test_the_interval_is_a_paired_bootstraps() -> None:
    """Three kinds of unlike sizes, each with the same weight, resampled within the kinds."""
    rng = np.random.default_rng(0)
    sizes = (60, 150, 390)
    old = [(rng.random(n) < 0.8).astype(float) for n in sizes]
    new = [np.where(rng.random(len(part)) < 0.12, (rng.random(len(part)) < 0.4), part) for part in old]
    differences = [one - other for one, other in zip(new, old, strict=True)]
    drawn = np.mean([rng.choice(part, (4000, len(part))).mean(1) for part in differences], axis=0)
    ends = np.quantile(drawn, [0.025, 0.975])
    kinds = [dict(zip("abc", (part.tolist() for part in parts), strict=True)) for parts in (new, old)]
    found = change(*(score_of_grades(kind, "these", average="kinds") for kind in kinds))
    assert found.paired and found.value == pytest.approx(np.mean([part.mean() for part in differences]))
    width = ends[1] - ends[0]
    assert [found.low, found.high] == pytest.approx(ends.tolist(), abs=0.05 * width)


def test_the_interval_holds_the_truth_in_95_of_100_draws() -> None:
    rng, held, width = np.random.default_rng(1), 0, 0.0
    for _ in range(600):
        old = rng.random(120) < 0.7
        new = np.where(old, rng.random(120) > 0.1, rng.random(120) < 0.05)
        _, low, high = paired_interval(new.astype(float).tolist(), old.astype(float).tolist(), [120], True)
        held += low <= -0.7 * 0.1 + 0.3 * 0.05 <= high
        width += high - low
    assert 0.93 <= held / 600 <= 0.985


def test_pairs_see_what_scores_by_themselves_do_not() -> None:
    """12 of 500 got worse and none better: no noise, though both scores are within each other's interval."""
    new, old = flipped(0, 12, 500)
    found = change(new, old)
    assert found.beyond_noise and found.high < 0
    apart = change(new.model_copy(update={"items": ()}), old)
    assert not apart.paired and not apart.beyond_noise
    others = change(new, old.model_copy(update={"items_of": "others"}))
    assert not others.paired


def test_nothing_changed_is_not_known_for_certain() -> None:
    score, same = flipped(0, 0, 100)
    found = change(score, same)
    assert found.value == 0 and -0.04 < found.low < 0 < found.high < 0.04


def test_a_gate_goes_by_the_paired_interval() -> None:
    new, old = flipped(0, 12, 500)
    closed, = check_gate(Gate(understanding_drop=0.005), {"understanding": new}, {"understanding": old})
    assert not closed.passed and closed.low is not None and 0.005 < closed.low < closed.drop == pytest.approx(0.024)
    open_, = check_gate(Gate(understanding_drop=0.02), {"understanding": new}, {"understanding": old})
    assert open_.passed


def test_perplexity_is_paired_in_nats() -> None:
    """A mean over windows of unlike length: Student's interval of the differences, of which exp() is taken."""
    rng = np.random.default_rng(2)
    counts = [200] * 30 + [120]
    before = [float(rng.normal(3.0, 0.3)) * n for n in counts]
    after = [loss + n * float(rng.normal(0.02, 0.01)) for loss, n in zip(before, counts, strict=True)]
    scores = [token_weighted(losses, counts, 10_000).model_copy(update={"items_of": "x"}) for losses in (after, before)]
    found = printed_change(*scores)
    tokens = sum(counts)
    each = [
        ((one - other) - (sum(after) - sum(before)) / tokens * n) * len(counts) / tokens
        for one, other, n in zip(after, before, counts, strict=True)
    ]
    nats = (sum(after) - sum(before)) / tokens
    ends = ttest_1samp(np.array(each) + nats, 0).confidence_interval(0.95)
    old = math.exp(sum(before) / tokens)
    assert [found.low, found.high] == pytest.approx([old * (math.exp(end) - 1) for end in ends], rel=2e-4)
    assert found.value == pytest.approx(math.exp(sum(after) / tokens) - old) and found.beyond_noise
    assert found.relative == pytest.approx(math.exp(nats) - 1)
    assert printed(scores[1]).value == pytest.approx(old)
    falls = change(*scores)
    assert falls.beyond_noise and falls.low < falls.value < falls.high < 0
