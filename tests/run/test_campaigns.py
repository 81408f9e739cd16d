"""A small share of the campaigns in tests/campaigns; `make campaigns` runs them whole."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

sys.path.insert(0, str(ROOT / "tests" / "campaigns"))

from damaged_folders import damaged_folders
from full_disks import full_disks
from kills import kills
from recipe_schema import recipes
from small_runs import prepare
from tampered import tampered


# Each has a home of its own: what one campaign changes in it is no concern of the next.
@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        yield prepare(tmp_path_factory.mktemp("home"), patch)


def test_no_recipe_by_schema_escapes(home: Path) -> None:
    assert recipes(home, 60, seed=1)[1] == []


def test_no_damaged_folder_escapes(home: Path) -> None:
    assert damaged_folders(home, 12, seed=1)[1] == []


def test_no_killed_run_is_lost(home: Path) -> None:
    assert kills(home, 3, seed=20, ways=("out of core",))[1] == []


def test_no_tampered_resume_goes_on_silently(home: Path) -> None:
    assert tampered(home, 4, seed=1)[1] == []


def test_no_full_disk_loses_a_run(home: Path) -> None:
    assert full_disks(home, 2, seed=1, ways=("out of core",))[1] == []
