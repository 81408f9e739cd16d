"""The built-in model: small enough to ship, good enough to measure on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from umcompress.evals.scenes.evaluation import Scenes
from umcompress.models.registry import resolve_folder
from umcompress.models.source import open_source

# Mean and lowest kind. Of generation, pairs of objects with looks of their own are learned last.
FLOORS = {"generation": (0.74, 0.55), "understanding": (0.94, 0.75)}


def test_it_is_small_and_safe() -> None:
    folder = resolve_folder("bagel-mini")
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6_000_000
    assert not [path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]


def test_it_is_far_above_chance(tmp_path: Path) -> None:
    """A quick look with wide margins; the real figures are the slow test's."""
    source = open_source("bagel-mini")
    scores = Scenes(prompts=60, questions=100).run(source.runner(source.load()), tmp_path, lambda text: None)
    for task, score in scores.items():
        assert score.chance is not None
        assert score.value > max({"generation": 0.6, "understanding": 0.85}[task], score.chance + 0.3), task


@pytest.mark.slow
def test_its_scores_on_a_thousand_prompts_and_two_thousand_questions() -> None:
    command = [sys.executable, "-m", "umcompress", "evaluate", "bagel-mini", "--seed", "7", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (step,) = json.loads(done.stdout)["steps"]
    for task, (mean, kind) in FLOORS.items():
        score = step["scores"][task]
        assert score["value"] >= mean, (task, score["value"])
        assert all(part["value"] >= kind for part in score["by_kind"].values()), score["by_kind"]
