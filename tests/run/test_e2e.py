"""The main job through the real command line on the built-in model, small evaluations."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from forked_command import Command, command
from places import DOCS
from safetensors.torch import load_file

import umcompress
from umcompress.documents.report import read_report
from umcompress.models.source import open_source

RECIPE = """\
model: bagel-mini
measure: {speed: last}
calibration: {task: understanding, samples: 12, seed: 0}
evaluate:
  - scenes: {prompts: 6, questions: 10}
steps:
  - pass: layer_drop
    component: understanding
    unit: attention
    drop_count: 1
  - pass: head_prune
    component: generation
    keep_ratio: 0.67
    calibration: {task: generation, samples: 4}
  - pass: channel_prune
    component: understanding
    keep_ratio: 0.75
    repair: least_squares
  - pass: channel_prune
    component: generation
    keep_ratio: 0.5
    calibration: {task: generation, samples: 4}
"""

BOTH = {"understanding", "generation"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of an uninterrupted run, of a process started as a user starts it."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "recipe.yaml").write_text(RECIPE)
    started = [sys.executable, "-m", "umcompress", "apply", "recipe.yaml", "-o", "out"]
    done = subprocess.run(started, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "umcompress compare" in done.stdout
    return folder / "out"


def test_the_report_has_a_row_a_pass(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    assert [step["pass"] for step in report["steps"]] == [
        None, "layer_drop", "head_prune", "channel_prune", "channel_prune",
    ]
    totals = [step["parameters"]["total"] for step in report["steps"]]
    assert totals == sorted(totals, reverse=True) and len(set(totals)) == len(totals)
    assert [set(step["speed"]) for step in report["steps"]] == [BOTH, set(), set(), set(), BOTH]
    for step in report["steps"]:
        assert set(step["scores"]) == BOTH
        assert (finished / step["samples"]).is_file()
    last = report["steps"][-1]
    assert last["macs_per_token"]["generation"] < report["steps"][0]["macs_per_token"]["generation"]
    assert report["checkpoint"]["reload_equal"] is True


def test_the_file_holds_what_the_report_counts(finished: Path) -> None:
    report = read_report(finished)
    stored = sum(t.numel() for file in (finished / "model").glob("*.safetensors") for t in load_file(file).values())
    assert stored == report.result.parameters.total
    assert sum(p.numel() for p in umcompress.load(finished).parameters()) == stored


def test_dropped_parts_are_gone(finished: Path) -> None:
    plan = json.loads((finished / "plan.json").read_text())
    (dropped,) = [edit for edit in next(iter(plan.values()))["edits"] if edit["kind"] == "drop_branch"]
    names = load_file(finished / "model" / "ema.safetensors").keys()
    left = [n for n in names if n.startswith(f"{dropped['block']}.") and ("self_attn" in n or "input_layernorm" in n)]
    assert left and all("_moe_gen" in name for name in left)


def test_a_finished_run_is_not_run_again_and_another_recipe_is_refused(finished: Path) -> None:
    again = command("apply", "recipe.yaml", "-o", "out", cwd=finished.parent)
    assert again.returncode == 0 and "nothing is left to do" in again.stderr
    other = command("apply", "recipe.yaml", "-o", "out", "--set", "steps.3.keep_ratio=0.25", cwd=finished.parent)
    assert other.returncode == 2 and "another recipe" in other.stderr and "-o" in other.stderr


def test_a_compressed_model_is_a_model(finished: Path, tmp_path: Path) -> None:
    source = open_source(str(finished))
    runner = source.runner(source.load())
    first = runner.probe()
    second = open_source(str(finished)).runner(umcompress.load(finished)).probe()
    assert all(torch.equal(first[name], second[name]) for name in first)
    painted = command("generate", str(finished), "a red circle left of a blue square", "-o", "out.png", cwd=tmp_path)
    assert painted.returncode == 0, painted.stderr
    answered = command("ask", str(finished), "out.png", "how many circles are there?", cwd=tmp_path)
    assert answered.returncode == 0 and answered.stdout.strip()
    more = tmp_path / "more.yaml"
    more.write_text(
        f"model: {finished}\nmeasure: {{speed: 'off'}}\nsteps:\n  - pass: channel_prune\n    component: generation\n"
        "    keep_ratio: 0.5\n    score: magnitude\n"
    )
    done = command("apply", "more.yaml", "-o", "more", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_report(tmp_path / "more").result.parameters.total < read_report(finished).result.parameters.total


def test_a_gate_undoes_its_step(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "model: bagel-mini\nmeasure: {speed: 'off'}\nevaluate:\n  - scenes: {prompts: 12, questions: 10}\nsteps:\n"
        "  - {pass: channel_prune, component: understanding, keep_ratio: 0.9, score: magnitude}\n"
        "  - pass: channel_prune\n    component: generation\n    keep_ratio: 0.02\n    score: random\n"
        "    stop_if: {generation_drop: 0.05}\n"
        "  - {pass: channel_prune, component: understanding, keep_ratio: 0.5, score: magnitude}\n"
    )
    done = command("apply", "recipe.yaml", "-o", "out", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    report = read_report(tmp_path / "out")
    assert report.stopped is not None and len(report.steps) == 3 and report.steps[-1].stopped
    counted = sum(p.numel() for p in umcompress.load(tmp_path / "out").parameters())
    assert counted == report.steps[1].parameters.total == report.result.parameters.total


def test_a_pass_of_the_users_own(tmp_path: Path) -> None:
    """Twenty lines outside of the package: validated, planned, applied, reported."""
    own = DOCS / "my_pass.py"
    recipe = (
        "model: bagel-mini\nmeasure: {speed: 'off'}\ncalibration: {samples: 12}\n"
        "evaluate:\n  - scenes: {prompts: 6, questions: 10}\nsteps:\n"
        f"  - pass: {own}:QuietChannels\n    component: understanding\n    share: 0.4\n"
    )
    (tmp_path / "recipe.yaml").write_text(recipe)
    wrong = command("plan", "recipe.yaml", "--set", "steps.0.share=7", cwd=tmp_path)
    assert wrong.returncode == 2 and "share" in wrong.stderr and "Traceback" not in wrong.stderr
    planned = command("plan", "recipe.yaml", cwd=tmp_path)
    assert planned.returncode == 0 and "QuietChannels" in planned.stdout
    done = command("apply", "recipe.yaml", "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = read_report(tmp_path / "out")
    assert report.steps[1].pass_ == f"{own}:QuietChannels" and report.steps[1].edits > 0
    assert report.result.parameters.total < report.baseline.parameters.total


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "model").glob("*.safetensors"))}


def kill_and_finish(folder: Path, out: str, delays: list[float]) -> None:
    """Start the run, kill it after each delay, then let it finish."""
    for delay in delays:
        running = Command("apply", "recipe.yaml", "-o", out, cwd=folder)
        time.sleep(delay)
        running.kill()
        running.wait()
    done = command("apply", "recipe.yaml", "-o", out, cwd=folder)
    assert done.returncode == 0, done.stderr


def test_a_killed_run_goes_on(finished: Path) -> None:
    """Killed while a step is at work: what is committed stays, the result is the same to the last byte."""
    running = Command("apply", "recipe.yaml", "-o", "killed", cwd=finished.parent)
    steps = finished.parent / "killed" / "steps"
    deadline = time.monotonic() + 300
    while not (steps / "02-head_prune").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    running.kill()
    running.wait()
    assert (steps / "02-head_prune").exists() and not (finished.parent / "killed" / "model").exists()
    done = command("apply", "recipe.yaml", "-o", "killed", cwd=finished.parent)
    assert done.returncode == 0 and "done before" in done.stderr
    assert bytes_of(finished.parent / "killed") == bytes_of(finished)


@pytest.mark.slow
def test_ten_kills_at_random_moments(finished: Path) -> None:
    """Each kill hits a fresh run at a random moment; the same command then finishes it, byte for byte."""
    import random

    folder = finished.parent
    started = time.monotonic()
    kill_and_finish(folder, "whole", [])
    whole = time.monotonic() - started
    moments = random.Random(0)
    for index in range(10):
        kill_and_finish(folder, f"kill{index}", [moments.uniform(0.05, 1.0) * whole])
        assert bytes_of(folder / f"kill{index}") == bytes_of(finished)
