"""The loss curve of a training: a file, and a few words of each step for the progress display."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from umcompress.documents.files import naming

CURVE = "training.jsonl"


class Curve:
    """The loss curve of a training: a file with one line of JSON for each step."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[dict[str, Any]] = []

    def read(self) -> None:
        self.rows = [json.loads(line) for line in self.file.read_text(encoding="utf-8").splitlines()]

    def resume(self, steps: int) -> None:
        """Keep the first `steps` rows: those after the checkpoint are computed again, and the last may be half."""
        if self.file.is_file():
            lines = self.file.read_text(encoding="utf-8").splitlines()[:steps]
            self.rows = [json.loads(line) for line in lines]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with naming(self.file), self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")


def shown_losses(losses: Mapping[str, float], load: tuple[float, float] | None) -> str:
    """Losses in a few words.  load: the smallest and the largest share of its tokens that an expert gets."""
    text = " ".join(f"{name} {value:.4f}" for name, value in losses.items())
    return text if load is None else f"{text} load {load[0]:.2f}-{load[1]:.2f}"
