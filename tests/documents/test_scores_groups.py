"""Intervals of grouped pictures and of means, against scipy and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from umcompress.documents.intervals import wilson
from umcompress.documents.scores import grouped_proportion, mean_of_kinds, mean_score, proportion


def test_mean_has_students_interval() -> None:
    for n in (2, 5, 10, 11, 40, 500):
        values = np.random.default_rng(n).normal(3, 2, n).tolist()
        found = mean_score(values)
        low, high = stats.t.interval(0.95, n - 1, np.mean(values), stats.sem(values))
        assert found.value == pytest.approx(np.mean(values))
        assert (found.low, found.high) == pytest.approx((low, high), rel=1e-3)


def test_mean_of_one_value_or_of_equal_ones() -> None:
    assert mean_score([0.5]).low < 0.1 < 0.9 < mean_score([0.5]).high
    assert (mean_score([1.0] * 4).low, mean_score([1.0] * 4).high) == (1.0, 1.0)


def test_groups_that_agree_count_as_one_item_each_and_mixed_ones_as_all_their_items() -> None:
    agree = grouped_proportion([(4, 4)] * 30 + [(0, 4)] * 20)
    assert (agree.value, agree.n) == (0.6, 200)
    # 50 groups, less one for the mean that is estimated from them
    assert (agree.low, agree.high) == pytest.approx(wilson(30, 50), abs=0.002)
    mixed = grouped_proportion([(2, 4)] * 50)
    assert (mixed.low, mixed.high) == wilson(100, 200)
    single = grouped_proportion([(1, 1)] * 30 + [(0, 1)] * 20)
    assert (single.low, single.high) == pytest.approx(wilson(30, 50))
    assert (grouped_proportion([(4, 4)] * 9).low, grouped_proportion([(4, 4)] * 9).high) == wilson(9, 9)


def test_grouped_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = naive = 0
    for _ in range(400):
        chances = rng.beta(0.6, 0.4, 80)  # prompts differ widely; their mean is 0.6
        rights = rng.binomial(4, chances)
        found = grouped_proportion([(int(right), 4) for right in rights])
        held += found.low <= 0.6 <= found.high
        plain = proportion(int(rights.sum()), 320)
        naive += plain.low <= 0.6 <= plain.high
    assert held / 400 > 0.92
    assert naive / 400 < 0.85


def test_of_kinds_is_the_plain_mean() -> None:
    score = mean_of_kinds({"a": proportion(9, 10), "b": proportion(100, 200)})
    assert score.value == pytest.approx(0.7)
    assert score.low < 0.7 < score.high
    assert score.n == 210
    assert list(score.by_kind) == ["a", "b"]
