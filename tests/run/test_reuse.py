"""Finished steps are used again where all that they depend on is the same, and only there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hf_models import write_folder, write_recipe
from hf_zoo import ZOO

from umcompress.cli.main import main

FILES = ("model/model.safetensors", "model/config.json", "model/README.md", "plan.json")
Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with a tokenizer's file, a recipe of two steps, and its finished run."""
    home = tmp_path_factory.mktemp("home")
    model = write_folder(ZOO["llama"].build(), home / "llama")
    (model / "vocab.txt").write_text("a\nb\n", encoding="utf-8")
    channels = {"pass": "channel_prune", "score": "magnitude", "keep_ratio": 0.5}
    recipe = write_recipe(home, model, {"pass": "layer_drop", "unit": "block", "drop": [1]}, channels)
    assert main(["apply", str(recipe), "-o", str(home / "run")]) == 0
    return home


def applied(home: Path, out: Path, *options: str) -> int:
    return main(["apply", str(home / "recipe.yaml"), "-o", str(out), *options])


CHANGED = ("--set", "steps.1.keep_ratio=0.25")


def test_a_changed_second_step_takes_baseline_and_first_step_from_another_run(
    home: Path, tmp_path: Path, capsys: Captured
) -> None:
    fresh, reused = tmp_path / "fresh", tmp_path / "reused"
    assert applied(home, fresh, *CHANGED) == 0
    capsys.readouterr()
    assert applied(home, reused, *CHANGED, "--reuse", str(home / "run")) == 0
    said = capsys.readouterr().err
    assert "taken from" in said and "baseline, 01-layer_drop" in said and "01-layer_drop: done before" in said
    for name in FILES:
        assert (fresh / name).read_bytes() == (reused / name).read_bytes(), name


def test_results_are_done_again_in_their_place_only_when_that_is_asked_for(
    home: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = shutil.copytree(home / "run", tmp_path / "out")
    before = (out / "report.json").read_bytes()
    assert applied(home, out, *CHANGED) == 2
    said = capsys.readouterr().err
    assert "step 02-channel_prune: keep_ratio: 0.5 before, 0.25 now" in said and "--reuse" in said
    assert (out / "report.json").read_bytes() == before
    assert applied(home, out, *CHANGED, "--reuse", str(out)) == 0
    said = capsys.readouterr().err
    assert "baseline, 01-layer_drop kept" in said and "done before" in said
    assert json.loads((out / "report.json").read_text())["steps"][2]["options"]["keep_ratio"] == 0.25


def test_an_unfinished_run_goes_on_with_another_later_step(home: Path, tmp_path: Path, capsys: Captured) -> None:
    """Nothing is lost by it, so nothing needs to be asked."""
    out = shutil.copytree(home / "run", tmp_path / "out")
    for name in ("model", "steps/02-channel_prune"):
        shutil.rmtree(out / name)
    (out / "report.json").unlink()
    assert applied(home, out, *CHANGED) == 0
    said = capsys.readouterr().err
    assert "keep_ratio: 0.5 before, 0.25 now" in said and "01-layer_drop: done before" in said


def flipped(file: Path, place: int) -> None:
    """One bit of a file, its size and its time of change as before."""
    found, content = file.stat(), bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))


def of_weights(model: Path) -> None:
    flipped(model / "model.safetensors", -1234)


def of_a_tokenizer(model: Path) -> None:
    flipped(model / "vocab.txt", 0)


@pytest.mark.parametrize(
    ("change", "name"), [(of_weights, "model.safetensors"), (of_a_tokenizer, "vocab.txt")]
)
def test_a_model_that_was_changed_in_place_is_noticed(
    change: Callable[[Path], None], name: str, home: Path, tmp_path: Path, capsys: Captured
) -> None:
    model, out = shutil.copytree(home / "llama", tmp_path / "llama"), shutil.copytree(home / "run", tmp_path / "run")
    change(model)
    (out / "report.json").unlink()
    for asked in (["-o", str(out)], ["-o", str(tmp_path / "new"), "--reuse", str(out)]):
        assert main(["apply", str(home / "recipe.yaml"), "--set", f"model={model}", *asked]) == 2
        assert f"the model's {name} has changed" in capsys.readouterr().err


def test_a_model_that_was_moved_is_the_same(home: Path, tmp_path: Path, capsys: Captured) -> None:
    model, out = shutil.copytree(home / "llama", tmp_path / "llama"), shutil.copytree(home / "run", tmp_path / "run")
    assert main(["apply", str(home / "recipe.yaml"), "--set", f"model={model}", "-o", str(out)]) == 0
    assert "nothing is left to do" in capsys.readouterr().err


def test_a_stored_plan_that_was_changed_is_made_again(home: Path, tmp_path: Path, capsys: Captured) -> None:
    out = shutil.copytree(home / "run", tmp_path / "out")
    (out / "report.json").unlink()
    file = out / "steps" / "02-channel_prune" / "step.json"
    step = json.loads(file.read_text())
    step["plan"]["edits"][0]["keep"][0] += 1
    file.write_text(json.dumps(step), encoding="utf-8")
    assert applied(home, out) == 0
    assert "was changed after the step was done" in capsys.readouterr().err
    for name in FILES:
        assert (home / "run" / name).read_bytes() == (out / name).read_bytes(), name


def test_nothing_to_reuse_is_said(home: Path, tmp_path: Path, capsys: Captured) -> None:
    assert applied(home, tmp_path / "out", "--reuse", str(home / "llama")) == 2
    assert "no run of umcompress" in capsys.readouterr().err
    assert applied(home, tmp_path / "out", "--set", "seed=3", "--reuse", str(home / "run")) == 2
    assert "seed: 0 before, 3 now" in capsys.readouterr().err
