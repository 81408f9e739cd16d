"""Compares tensors, keeps score, and notices what was left unchecked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

ABSOLUTE = 1e-4
RELATIVE_NORM = 1e-3


class Golden:
    """One golden file; remembers which of its `out.` tensors were compared."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.tensors = load_file(path)
        self.checked: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def names(self, prefix: str) -> list[str]:
        return sorted(name for name in self.tensors if name.startswith(prefix))

    def unchecked(self) -> list[str]:
        return [name for name in self.names("out.") if name not in self.checked]


class Checker:
    """Prints one line a comparison and counts failures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[Golden] = []
        self.failures = 0
        self.count = 0

    def open(self, name: str) -> Golden:
        golden = Golden(self.folder / name)
        self.files.append(golden)
        return golden

    def line(self, good: bool, name: str, text: str) -> None:
        self.count += 1
        self.failures += not good
        print(f"{'ok  ' if good else 'FAIL'} {name:58s} {text}")

    def close(self, golden: Golden, name: str, ours: Tensor, bar: float = ABSOLUTE) -> None:
        """Worst absolute error of `ours` against the golden tensor `name`."""
        golden.checked.add(name)
        theirs = golden[name]
        label = f"{golden.name}: {name}"
        if theirs.shape != ours.shape:
            self.line(False, label, f"shape {tuple(ours.shape)}, expected {tuple(theirs.shape)}")
            return
        error = float((ours.double() - theirs.double()).abs().max()) if theirs.numel() else 0.0
        self.line(math.isfinite(error) and error <= bar, label, f"worst absolute error {error:.2e}")

    def same(self, golden: Golden, name: str, ours: Tensor) -> None:
        """Discrete tensors: equal or not."""
        golden.checked.add(name)
        self.equal(f"{golden.name}: {name}", ours.tolist(), golden[name].tolist())

    def equal(self, label: str, ours: Any, theirs: Any) -> None:
        """Discrete values: equal or not."""
        good = ours == theirs
        self.line(good, label, "equal" if good else f"{_short(ours)}, expected {_short(theirs)}")

    def number(self, label: str, ours: float, theirs: float, bar: float = ABSOLUTE) -> None:
        error = abs(ours - theirs)
        self.line(math.isfinite(error) and error <= bar, label, f"absolute error {error:.2e}")

    def norm(self, label: str, ours: float, theirs: float) -> None:
        """A gradient norm: relative error against norm + 1e-3."""
        error = abs(ours - theirs) / (theirs + 1e-3)
        self.line(math.isfinite(error) and error <= RELATIVE_NORM, label, f"relative error {error:.2e}")

    def all_files_seen(self, folder: Path, known: Sequence[str]) -> None:
        """A golden file that no check knows counts as unchecked."""
        for path in sorted(folder.glob("*.safetensors")):
            if path.name not in known:
                self.line(False, path.name, "no check knows this file")

    def finish(self) -> int:
        for golden in self.files:
            for name in golden.unchecked():
                self.line(False, f"{golden.name}: {name}", "left unchecked")
        print(f"{self.count - self.failures} of {self.count} checks passed")
        return 1 if self.failures else 0


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else text[:57] + "..."


def pixels_close(ours: Tensor, theirs: Tensor) -> bool:
    """uint8 images, one step of rounding allowed."""
    return bool((ours.to(torch.int16) - theirs.to(torch.int16)).abs().max() <= 1)
