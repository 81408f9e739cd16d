"""Fixtures that several files share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings


@pytest.fixture(scope="session")
def tiny_bagel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BAGEL folder with random weights. Read it; whoever changes it works on a copy."""
    from tiny_bagel import write_tiny_bagel

    return write_tiny_bagel(tmp_path_factory.mktemp("models") / "tiny-bagel")

# How long a draw takes says how busy the machine is, and nothing of the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
