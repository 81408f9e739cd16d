"""Recipes on models that see and paint, through the command line: both tasks calibrate and are scored."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_models import write_recipe
from unified_models import write_unified

from umcompress.calibrate.collect import collect
from umcompress.cli.main import main
from umcompress.documents.base import Task
from umcompress.graph.model_graph import trace_model
from umcompress.models.items import GenerationItem, UnderstandingItem
from umcompress.models.source import open_source
from umcompress.passes.channel_prune import ChannelPrune

EVALUATION = '''
from umcompress.extend import Evaluation
from umcompress.documents.scores import proportion
from umcompress.extend import Score

class Both(Evaluation):
    name = "both"

    def run(self, runner, out, progress):
        import numpy as np

        out.mkdir(parents=True, exist_ok=True)
        grey = [np.full((16, 16, 3), value, np.uint8) for value in (20, 200)]
        answers = runner.answer(grey, ["dark?", "light?"], 3)
        scores = {"understanding": Score(**proportion(sum(map(bool, answers)), 2).model_dump())}
        if "generation" in runner.tasks:
            pictures = runner.generate(["a dot", "two dots"], 0)
            good = sum(picture.std() > 0 for picture in pictures)
            scores["generation"] = Score(**proportion(good, 2).model_dump())
        return scores

    def calibration_items(self, task, samples, seed):
        import numpy as np
        from umcompress.extend import GenerationItem, UnderstandingItem

        if task == "generation":
            return [GenerationItem("dot " * (1 + place % 2), seed + place) for place in range(samples)]
        rng = np.random.default_rng(seed)
        pictures = rng.integers(0, 256, (samples, 16, 16, 3), dtype=np.uint8)
        return [UnderstandingItem(picture, "what?", "dots") for picture in pictures]
'''


@pytest.mark.parametrize(("name", "tasks"), [
    ("janus", {"understanding", "generation"}), ("emu3", {"understanding", "generation"}),
    ("chameleon", {"understanding"}),
])  # fmt: skip
def test_a_recipe_with_both_tasks(name: str, tasks: set[str], tmp_path: Path) -> None:
    model = write_unified(name, tmp_path / "model")
    (tmp_path / "both.py").write_text(EVALUATION)
    steps = [
        {"pass": "channel_prune", "component": "shared", "stack": "main", "keep_ratio": 0.75,
         "calibration": {"task": task, "samples": 2}}
        for task in ("understanding", "generation")
    ]  # fmt: skip
    recipe = write_recipe(tmp_path, model, *steps, evaluate=[{"both.py:Both": {}}])
    assert main(["apply", str(recipe), "-o", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["checkpoint"]["reload_equal"] is True
    for step in report["steps"]:
        assert set(step["scores"]) == set(step["speed"]) == set(step["macs_per_token"]) == tasks
    first, *_, last = report["steps"]
    assert all(last["macs_per_token"][task] < first["macs_per_token"][task] for task in tasks)
    source = open_source(str(tmp_path / "out"))
    pruned: Any = source.load()
    assert {m.out_features for n, m in pruned.named_modules() if n.endswith("mlp.gate_proj")} == {27}
    again = open_source(str(tmp_path / "out"))
    one, two = (opened.runner(opened.load()).probe() for opened in (source, again))
    assert all(torch.equal(value, two[key]) for key, value in one.items())


def test_out_of_core_gives_the_same_plan(tmp_path: Path) -> None:
    model = write_unified("emu3", tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a dot\ntwo cats\n")
    calibration = {"task": "generation", "samples": 2, "data": str(tmp_path / "prompts.txt")}
    step = {"pass": "channel_prune", "component": "shared", "stack": "main", "keep_ratio": 0.5, "repair": "none"}
    recipe = write_recipe(tmp_path, model, step, calibration=calibration)
    plans = []
    for way, more in {"in": [], "out": ["--out-of-core"]}.items():
        assert main(["apply", str(recipe), "-o", str(tmp_path / way), *more]) == 0
        assert json.loads((tmp_path / way / "report.json").read_text())["checkpoint"]["reload_equal"] is True
        plans.append([plan["edits"] for plan in json.loads((tmp_path / way / "plan.json").read_text()).values()])
    assert plans[0] == plans[1] and plans[0][0]


@pytest.mark.parametrize("name", ["janus", "emu3"])
def test_both_tasks_have_statistics_of_their_own(name: str, tmp_path: Path) -> None:
    source = open_source(str(write_unified(name, tmp_path / "model")))
    model = source.load()
    runner, graph = source.runner(model), trace_model(model, source.family)
    needs = ChannelPrune(keep_ratio=0.5, score="activation", repair="none", stack="main").needs()
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    items: dict[Task, list[UnderstandingItem | GenerationItem]] = {
        "understanding": [UnderstandingItem(picture, "what?", "dots")], "generation": [GenerationItem("a dot", 0)],
    }  # fmt: skip
    found = {task: collect(graph, needs, partial(runner.feed, items[task]), task) for task in items}
    plans = {
        task: ChannelPrune(keep_ratio=0.5, score="activation", repair="none", stack="main").plan(graph, statistics).plan
        for task, statistics in found.items()
    }
    assert plans["understanding"].edits and plans["understanding"].edits != plans["generation"].edits
