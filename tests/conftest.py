"""Fixtures that several files share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings


@pytest.fixture(scope="session")
def tiny_bagel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BAGEL folder with random weights. Read it; whoever changes it works on a copy."""
    from tiny_bagel import write_tiny_bagel

    return write_tiny_bagel(tmp_path_factory.mktemp("models") / "tiny-bagel")


@pytest.fixture(autouse=True)
def same_draws(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test draws the same pictures whichever tests ran before it in its process."""
    if hasattr(request.module, "RNG"):
        monkeypatch.setattr(request.module, "RNG", np.random.default_rng(0))


@pytest.fixture(autouse=True, scope="session")
def checks_in_forks() -> Iterator[None]:
    """Written models are checked in forks of a process that has the libraries: starting one takes seconds."""
    from forked_check import fork_checks

    with pytest.MonkeyPatch.context() as patch:
        fork_checks(patch)
        yield


@pytest.fixture(autouse=True, scope="session")
def two_timings() -> Iterator[None]:
    """Models are really timed, but twice only."""
    from forked_check import time_twice

    with pytest.MonkeyPatch.context() as patch:
        time_twice(patch)
        yield


# How long a draw takes says how busy the machine is, and nothing of the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
