"""specialize: what one task never reads is gone, what it computes is the same to the last bit, the other is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_bagel import DECODER, write_recipe, write_tiny_bagel

import umcompress
from umcompress.cli.main import main
from umcompress.documents.base import Task
from umcompress.documents.plan import DropBranch, DropModule, Plan
from umcompress.documents.removed import site_results
from umcompress.errors import ModelError, PlanError
from umcompress.extend import Statistics, find_pass
from umcompress.graph.model_graph import trace_model
from umcompress.models.source import open_source
from umcompress.plan.changes import site_changes
from umcompress.rewrite.apply import rewrite

OF_GENERATION = {"language_model.model.norm_moe_gen", "time_embedder", "vae2llm", "llm2vae", "latent_pos_embed", "vae"}
OF_UNDERSTANDING = {"language_model.lm_head", "vit_model", "connector", "vit_pos_embed"}


def proposed(folder: Path, task: Task) -> Plan:
    source = open_source(str(folder))
    graph = trace_model(source.skeleton(), source.family)
    plan: Plan = find_pass("specialize").model_validate({"task": task}).plan(graph, Statistics(dry=True)).plan
    return plan


def test_all_of_generation_goes_and_nothing_else(tiny_bagel: Path) -> None:
    plan = proposed(tiny_bagel, "understanding")
    assert {edit.module for edit in plan.edits if isinstance(edit, DropModule)} == OF_GENERATION
    streams = [edit for edit in plan.edits if isinstance(edit, DropBranch)]
    assert len(streams) == 6 and {edit.component for edit in streams} == {"generation"}


def test_the_report_and_plan_say_what_went(tiny_bagel: Path) -> None:
    plan = proposed(tiny_bagel, "understanding")
    gone = {row.site: row.after for row in site_results(plan) if row.unit == "module"}
    assert gone == dict.fromkeys(OF_GENERATION, 0) and all(row.after == 0 for row in site_results(plan))
    source = open_source(str(tiny_bagel))
    changes = site_changes(plan, trace_model(source.skeleton(), source.family), measured=False)
    assert {change.site for change in changes if change.unit == "module"} == OF_GENERATION


def test_pictures_need_no_tower_no_head_and_no_last_feed_forward(tiny_bagel: Path) -> None:
    """The text runs through the understanding weights in generation, too; in the last block nothing reads it."""
    plan = proposed(tiny_bagel, "generation")
    assert {edit.module for edit in plan.edits if isinstance(edit, DropModule)} == OF_UNDERSTANDING
    last = DropBranch(block=f"{DECODER}.2", branch="feed_forward", component="understanding")
    assert [edit for edit in plan.edits if isinstance(edit, DropBranch)] == [last]


@pytest.mark.parametrize("task", ["understanding", "generation"])
def test_a_run_keeps_every_bit_of_its_task_and_refuses_the_other(tiny_bagel: Path, task: Task, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_bagel, {"pass": "specialize", "task": task}, evaluate=[])
    assert main(["apply", str(recipe), "-o", str(tmp_path / "run"), "--out-of-core"]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    sizes = [step["parameters"]["total"] for step in report["steps"]]
    assert sizes[1] < 0.9 * sizes[0] and "specialized" in report["checkpoint"]["note"]
    source = open_source(str(tiny_bagel))
    before = source.runner(source.load()).probe()
    folder = tmp_path / "run" / "model"
    model = umcompress.load(str(folder))
    assert sum(p.numel() for p in model.parameters()) == sizes[1]
    runner = open_source(str(folder)).runner(model)
    after = runner.probe()
    assert after.keys() == ({"logits"} if task == "understanding" else {"latents", "image"})
    assert all(torch.equal(before[name], value) for name, value in after.items())
    with pytest.raises(ModelError, match=f"specialized for {task}"):
        if task == "understanding":
            runner.generate(["a red circle"], 0)
        else:
            runner.answer([np.zeros((8, 8, 3), dtype=np.uint8)], ["what is it?"])


def test_nothing_is_left_to_remove_the_second_time(tiny_bagel: Path) -> None:
    source = open_source(str(tiny_bagel))
    model = rewrite(source.load(), source.family, [proposed(tiny_bagel, "understanding")])
    again = find_pass("specialize").model_validate({"task": "understanding"})
    with pytest.raises(PlanError, match="leave the step out"):
        again.plan(trace_model(model, source.family), Statistics())


def test_a_cut_model_is_specialized_as_well(tmp_path: Path) -> None:
    """A block without a generation stream, and channels of understanding gone."""
    folder = write_tiny_bagel(tmp_path / "tiny")
    source = open_source(str(folder))
    model = source.load()
    for name, options in (
        ("layer_drop", {"component": "generation", "drop": [1]}),
        ("channel_prune", {"component": "understanding", "keep_ratio": 0.5, "score": "magnitude"}),
    ):
        plan = find_pass(name).model_validate(options).plan(trace_model(model, source.family), Statistics()).plan
        rewrite(model, source.family, [plan])
    before = source.runner(model).probe()["logits"]
    plan = find_pass("specialize").model_validate({"task": "understanding"}).plan(
        trace_model(model, source.family), Statistics()
    ).plan
    rewrite(model, source.family, [plan])
    assert torch.equal(source.runner(model).probe()["logits"], before)


@pytest.mark.parametrize(
    ("module", "says"), [("vae3llm", "no module vae3llm"), (f"{DECODER}.1.mlp", "drop the block, or a branch")]
)
def test_only_modules_outside_of_blocks_are_removed(tiny_bagel: Path, module: str, says: str) -> None:
    source = open_source(str(tiny_bagel))
    edit = DropModule(module=module, task="understanding")
    with pytest.raises(PlanError, match=says):
        rewrite(source.skeleton(), source.family, [Plan(pass_name="cut", edits=(edit,))])
