"""Fixtures that several files share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_bagel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BAGEL folder with random weights. Read it; whoever changes it works on a copy."""
    from tiny_bagel import write_tiny_bagel

    return write_tiny_bagel(tmp_path_factory.mktemp("models") / "tiny-bagel")
