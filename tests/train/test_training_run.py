"""Training steps through the command line: killed and resumed, several processes, what is refused."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_command import Command
from safetensors.torch import load_file

from umcompress.cli.main import main
from umcompress.documents.report import read_report

SPLIT = {
    "pass": "moe_split", "component": "generation", "layers": "all", "experts": 8, "active": 4,
    "partition": "random", "router": "zero", "repair": "none",
}  # fmt: skip
TRAIN = {
    "pass": "router_train", "steps": 5, "batch_size": 4, "warm_up": 0, "learning_rate": 0.01, "checkpoint_every": 2,
}  # fmt: skip
# Scores nothing; stops the training while the file `stop` is there, when the fourth step asks for its items.
EVALUATION = '''
from pathlib import Path
from typing import Any, ClassVar

from umcompress.evals.scenes.evaluation import Scenes
from umcompress.extend import Evaluation, Score, Task


class Painting(Evaluation):
    """Scenes to train on, and no score."""

    name: ClassVar[str] = "painting"

    def run(self, runner: Any, out: Path, progress: Any) -> dict[Task, Score]:
        return {}

    def calibration_items(self, task: Task, samples: int, seed: int) -> list[Any]:
        return Scenes().calibration_items(task, min(samples, 2), seed)

    def training_items(self, task: Task, count: int, seed: int) -> list[Any]:
        asked = Path(__file__).with_name("asked")
        with asked.open("a") as stream:
            # One alone is looked at before anything runs.
            stream.write("." if count > 1 else "")
        if Path(__file__).with_name("stop").exists() and len(asked.read_text()) > 4:
            raise KeyboardInterrupt
        return Scenes().training_items(task, count, seed)
'''


def write(folder: Path, model: Path, *steps: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "painting.py").write_text(EVALUATION)
    recipe = {"model": str(model), "evaluate": ["painting.py:Painting"], "steps": list(steps)}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return folder


def trained(out: Path) -> dict[str, torch.Tensor]:
    (file,) = out.glob("steps/02-router_train/tensors.safetensors")
    return load_file(file)


def curve(out: Path) -> list[dict[str, Any]]:
    (file,) = out.glob("steps/02-router_train/training/training.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tiny_bagel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nobody disturbed."""
    folder = write(tmp_path_factory.mktemp("whole"), tiny_bagel, SPLIT, TRAIN)
    assert main(["apply", str(folder / "recipe.yaml"), "-o", str(folder / "out")]) == 0
    return folder / "out"


def test_the_report_tells_of_the_training_and_the_experts(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = read_report(whole)
    last = report.steps[-1]
    assert last.training is not None and last.training.steps == 5 and last.training.parameters == 3 * 8 * 64
    assert last.training.first["loss"] == curve(whole)[0]["losses"]["loss"]
    assert report.steps[0].experts is None
    for step in report.steps[1:]:
        assert step.experts is not None and len(step.experts.sites) == 3
        for site in step.experts.sites:
            assert set(site.by_task) == {"generation"} and sum(site.by_task["generation"]) == pytest.approx(4)
            assert all(sum(shares) == pytest.approx(4) for shares in site.by_time)
    # Untrained, all routers are equal: the same experts for every token.
    untrained = report.steps[1].experts
    assert untrained is not None and {s for site in untrained.sites for s in site.by_task["generation"]} == {0.0, 1.0}
    assert report.checkpoint is not None and report.checkpoint.reload_equal
    assert main(["apply", str(whole.parent / "recipe.yaml"), "-o", str(whole)]) == 0
    printed = capsys.readouterr().out
    assert "Training" in printed and "Experts after 02-router_train" in printed and "learns" in printed
    tables = printed[printed.index("\nTraining") : printed.index("\nmodel: ")]
    assert all(len(line) <= 80 for line in tables.splitlines())
    assert not list(whole.rglob("training.safetensors"))


def test_a_killed_training_goes_on_to_the_same_bits(
    whole: Path, tiny_bagel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path, tiny_bagel, SPLIT, TRAIN)
    command = ["apply", str(folder / "recipe.yaml"), "-o", str(folder / "out")]
    (folder / "stop").touch()
    assert main(command) == 130
    left = folder / "out" / "steps" / ".02-router_train.partial" / "training"
    assert (left / "training.safetensors").is_file()
    assert len((left / "training.jsonl").read_text().splitlines()) == 3
    (folder / "stop").unlink()
    good = (left / "training.safetensors").read_bytes()
    (left / "training.safetensors").write_bytes(good[:100])
    assert main(command) == 1
    told = capsys.readouterr().err
    assert "training.safetensors" in told and "damaged" in told and "rm " in told and "Traceback" not in told
    (left / "training.safetensors").write_bytes(good)
    assert main(command) == 0
    assert "resumed after step 2 of 5" in capsys.readouterr().err
    first, second = trained(whole), trained(folder / "out")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    without = [[{k: v for k, v in row.items() if k != "seconds"} for row in curve(o)] for o in (whole, folder / "out")]
    assert without[0] == without[1] and len(without[0]) == 5


def as_by_one(whole: Path, out: Path) -> None:
    """Two processes did what one does, but for rounding."""
    one, two = curve(whole), curve(out)
    assert len(one) == len(two) == 5
    for a, b in zip(one, two, strict=True):
        assert b["losses"] == pytest.approx(a["losses"], rel=1e-4)
        assert b["load"] == pytest.approx(a["load"], abs=0.02)
    first, second = trained(whole), trained(out)
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=2e-4)
    assert read_report(out).checkpoint is not None


def test_two_processes_give_the_same_curve(whole: Path, tiny_bagel: Path, tmp_path: Path) -> None:
    """On gloo, with what torchrun and `accelerate launch` put into the environment; the recipe is the same."""
    folder = write(tmp_path, tiny_bagel, SPLIT, TRAIN)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "CUDA_VISIBLE_DEVICES": ""}
    ranks = [common | {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"} for rank in "01"]
    running = [Command("apply", "recipe.yaml", "-o", "out", cwd=folder, environment=rank) for rank in ranks]
    done = [one.wait() for one in running]
    assert [one.returncode for one in done] == [0, 0], done
    assert [one.stdout.count("Experts after 02-router_train") for one in done] == [1, 0]
    as_by_one(whole, folder / "out")


@pytest.mark.slow
def test_two_processes_that_accelerate_starts(whole: Path, tiny_bagel: Path, tmp_path: Path) -> None:
    folder = write(tmp_path, tiny_bagel, SPLIT, TRAIN)
    launch = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
    ]  # fmt: skip
    command = [*launch, "-m", "umcompress", "apply", "recipe.yaml", "-o", "out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("Experts after 02-router_train") == 1
    as_by_one(whole, folder / "out")


def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["apply", str(folder / "recipe.yaml"), "-o", str(folder / "out")]) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    return told


def test_there_must_be_something_to_train(
    tiny_bagel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("router_train", "adapt"):
        told = refused(write(tmp_path / name, tiny_bagel, {"pass": name}), capsys)
        assert "moe_split" in told
    told = refused(write(tmp_path / "p", tiny_bagel, {"pass": "adapt", "parameters": ["*.mlp_mole.*"]}), capsys)
    assert "*.mlp_mole.*" in told and "*.mlp.*" in told


def test_a_part_that_no_task_reaches_is_refused(
    tiny_bagel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(write(tmp_path, tiny_bagel, {"pass": "adapt", "parameters": ["vae.encoder.*"]}), capsys)
    assert "no task reaches" in told


def test_training_needs_training_data(tiny_bagel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path, tiny_bagel, {"pass": "adapt", "parameters": ["*.mlp.*"]})
    text = EVALUATION[: EVALUATION.index("    def training_items")]
    (folder / "painting.py").write_text(text)
    assert "training data" in refused(folder, capsys)


def test_planning_counts_what_learns(tiny_bagel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path, tiny_bagel, SPLIT, TRAIN)
    assert main(["plan", str(folder / "recipe.yaml")]) == 0
    assert "router_train" in capsys.readouterr().out
