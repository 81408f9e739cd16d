"""When the timing of a model ends, and how sure its median is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from fake_runners import Clock
from scipy.stats import binom
from tiny_bagel import write_tiny_bagel

from umcompress.models import stopwatch
from umcompress.models.bagel import runner as bagel_runner
from umcompress.models.bagel.family import BagelFamily


@pytest.fixture(autouse=True)
def real_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopwatch, "FEWEST", 3)
    monkeypatch.setattr(stopwatch, "MOST", 12)


@pytest.mark.parametrize("count", [6, 9, 12, 20])
def test_the_noise_is_half_of_the_interval_of_the_median_by_ranks(count: int) -> None:
    """The narrowest symmetric pair of ranks that covers the median with 95 %, by the binomial distribution."""
    values = np.random.default_rng(count).uniform(0.5, 2.0, count)
    ordered = np.sort(values)
    covers = [low for low in range(count // 2) if 1 - 2 * binom.cdf(low, count, 0.5) >= 0.95]
    low = max(covers)
    wanted = (ordered[count - 1 - low] - ordered[low]) / 2 / np.median(values)
    assert stopwatch.relative_noise(values.tolist()) == pytest.approx(wanted, rel=1e-12)


def test_of_few_values_the_noise_is_half_of_their_range() -> None:
    assert stopwatch.relative_noise([1.0, 1.2, 0.9]) == pytest.approx(0.15)


def test_a_steady_model_is_timed_three_times_and_a_restless_one_twelve() -> None:
    dense = Clock(1.0)
    watch = stopwatch.Stopwatch(dense, paired=True)
    steady = Clock(0.5)
    found = watch.compare(steady, ["understanding"])["understanding"]
    # The first of each warms up.
    assert (steady.calls, dense.calls) == (4, 4) and found.ratio == 2 and found.noise == 0
    restless = Clock(0.5, 0.8)
    found = watch.compare(restless, ["understanding"])["understanding"]
    assert restless.calls == 13 and found.noise is not None and found.noise > 0.1


def test_the_unpruned_model_is_one_by_definition() -> None:
    runner = Clock(9.0, 0.25, 0.25, 0.25)
    found = stopwatch.own_speed(runner, ["understanding"])["understanding"]
    assert found.ratio == 1 and found.measures == {"tokens_per_second": 4.0} and runner.calls == 4


def test_decoding_is_timed_once_for_all_models_of_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The autoencoder is never compressed: every model's seconds hold the same for it."""
    decoded: list[int] = []

    def decode(model: object, tokens: object, sizes: Sequence[tuple[int, int]]) -> list[object]:
        decoded.append(len(sizes))
        time.sleep(0.2)
        return []

    monkeypatch.setattr(bagel_runner, "_DECODING", {})
    monkeypatch.setattr(bagel_runner, "decode_images", decode)
    folder, family = write_tiny_bagel(tmp_path / "model"), BagelFamily()
    runners = [family.runner(family.load(folder), folder) for _ in range(2)]
    works = [runner.workload("generation") for runner in (*runners, *runners)]
    assert len(decoded) == 4
    assert all(work.seconds > 0.2 and work.measures["image_seconds"] > 0.2 / decoded[0] for work in works)
