"""The progress display of a training, and the file with its loss curve."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from umcompress.files import naming

CURVE = "training.jsonl"
# Where there is no terminal: so many lines in all.
LINES = 10


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


class Display:
    """A bar with the losses and the experts' load in a terminal, a line now and then elsewhere."""

    def __init__(self, title: str, steps: int, done: int, say: Callable[[str], None], quiet: bool) -> None:
        self.title, self.steps, self.say, self.quiet = title, steps, say, quiet
        self._bar: Any = None
        self._task: Any = None
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            counts = (BarColumn(bar_width=14), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*counts, TextColumn("{task.description}"), console=Console(stderr=True))
            self._task = self._bar.add_task("", total=steps, completed=done)

    def __enter__(self) -> Display:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, done: int, losses: Mapping[str, float], load: tuple[float, float] | None) -> None:
        """After `done` steps.  `load`: the smallest and the largest share of its tokens that an expert gets."""
        if self.quiet:
            return
        text = " ".join(f"{name} {value:.4f}" for name, value in losses.items())
        if load is not None:
            text += f" load {load[0]:.2f}-{load[1]:.2f}"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=text)
        elif done == self.steps or done % max(1, self.steps // LINES) == 0:
            self.say(f"{self.title}: step {done} of {self.steps}: {text}")
