"""Fixtures that several files share."""

from __future__ import annotations

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


# How long a draw takes says how busy the machine is, and nothing of the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
