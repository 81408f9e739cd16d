"""`calibration: {task: both}`: the items of the one task and of the other in one sweep."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_bagel import write_recipe, write_tiny_bagel

from umcompress.calibrate.collect import collect
from umcompress.calibrate.declare import ChannelMoments, Scope
from umcompress.cli.main import main
from umcompress.data.sources import calibration_items
from umcompress.evals.scenes.evaluation import Scenes
from umcompress.extend import find_evaluation, find_pass
from umcompress.graph.model_graph import trace_model
from umcompress.models.source import open_source
from umcompress.recipe.files import load_recipe

HALF = {"pass": "channel_prune", "component": "understanding", "keep_ratio": 0.5, "repair": "least_squares"}


def test_moments_of_both_are_the_sums_of_the_moments_of_each(tmp_path: Path) -> None:
    source = open_source(str(write_tiny_bagel(tmp_path / "model")))
    model = source.load()
    graph, runner = trace_model(model, source.family), source.runner(model)
    wanted = ChannelMoments(Scope(component="understanding"))
    found = {}
    for task in ("understanding", "generation", "both"):
        written = write_recipe(tmp_path, tmp_path / "model", HALF, calibration={"task": task, "samples": 5})
        recipe = load_recipe(str(written), find_pass, find_evaluation).recipe
        calibration = recipe.calibration_of(recipe.steps[0].pass_)
        items = calibration_items(recipe, calibration, [Scenes(prompts=2, questions=4)], lambda line: None)
        found[task] = collect(graph, [wanted], partial(runner.feed, items), task)[wanted]
    for site in graph.feed_forwards(component="understanding"):
        asked, painted, both = (found[task][site] for task in ("understanding", "generation", "both"))
        assert both.tokens == asked.tokens + painted.tokens and min(asked.tokens, painted.tokens) > 0
        summed = (asked.second * asked.tokens + painted.second * painted.tokens) / both.tokens
        torch.testing.assert_close(both.second, summed, rtol=1e-4, atol=1e-6)


def test_a_recipe_calibrates_on_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_bagel(tmp_path / "model")
    recipe = write_recipe(
        tmp_path, tmp_path / "model", HALF, calibration={"task": "both", "samples": 5}, measure={"speed": "off"}
    )
    assert main(["apply", str(recipe), "-o", str(tmp_path / "run")]) == 0
    assert "calibrating on 5 understanding and 5 generation samples" in capsys.readouterr().err


def test_a_file_that_has_rows_of_one_task_alone_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_bagel(tmp_path / "model")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a red circle"}\n' * 3, encoding="utf-8")
    calibration = {"task": "both", "samples": 2, "data": "prompts.jsonl"}
    recipe = write_recipe(tmp_path, tmp_path / "model", HALF, calibration=calibration)
    assert main(["apply", str(recipe), "-o", str(tmp_path / "run")]) == 2
    assert "0 of its 3 rows are for understanding" in capsys.readouterr().err
