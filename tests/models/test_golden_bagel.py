"""The golden folder of BAGEL, through the command that others will use; and that the command can fail."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from golden_check import main
from places import DATA, TESTS
from safetensors.torch import load_file, save_file

GOLDEN = DATA / "golden_bagel"


@dataclass(frozen=True)
class Checked:
    """What the command came to."""

    returncode: int
    stdout: str


def golden_check(folder: Path) -> Checked:
    """The command in this process: its imports cost more than its checks."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(["bagel", str(folder)])
    return Checked(code, out.getvalue())


def test_every_golden_tensor_is_met() -> None:
    command = [sys.executable, str(TESTS / "golden_check.py"), "bagel", str(GOLDEN)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "FAIL" not in done.stdout
    assert "train: gradient of" in done.stdout and "out.latents_cfg4" in done.stdout


@pytest.mark.parametrize("file", ["understanding", "t2i", "edit", "batch2", "train"])
def test_one_changed_number_is_noticed(tmp_path: Path, file: str) -> None:
    folder = tmp_path / "golden"
    shutil.copytree(GOLDEN, folder)
    tensors = load_file(folder / f"{file}.safetensors")
    outputs = (name for name in sorted(tensors) if name.startswith("out."))
    name = next(name for name in outputs if tensors[name].is_floating_point())
    tensors[name].view(-1)[0] += 0.01
    save_file(tensors, folder / f"{file}.safetensors")
    done = golden_check(folder)
    assert done.returncode == 1
    assert f"FAIL {file}.safetensors: {name}" in done.stdout


@pytest.mark.parametrize(
    ("file", "keys"),
    [("train_grad_norms.json", ["connector.fc1.bias"]), ("resize_sizes.json", ["rows", 0, "vae_hw", 0]),
     ("meta.json", ["train", "loss_ce"])],
)
def test_a_changed_json_value_is_noticed(tmp_path: Path, file: str, keys: list[str | int]) -> None:
    folder = tmp_path / "golden"
    shutil.copytree(GOLDEN, folder)
    content = json.loads((folder / file).read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] += 1
    (folder / file).write_text(json.dumps(content))
    assert golden_check(folder).returncode == 1


def test_an_unknown_output_counts_as_unchecked(tmp_path: Path) -> None:
    folder = tmp_path / "golden"
    shutil.copytree(GOLDEN, folder)
    tensors = load_file(folder / "t2i.safetensors")
    tensors["out.something_new"] = torch.zeros(2)
    save_file(tensors, folder / "t2i.safetensors")
    done = golden_check(folder)
    assert done.returncode == 1 and "left unchecked" in done.stdout
