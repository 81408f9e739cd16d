"""Calibration data from a file of the user's; and a check that it does not overlap with evaluations.

A text file has a prompt a line, or where understanding is calibrated, a text.  JSON lines have `prompt`, or `image`
(a file, seen from the JSON's folder) with `question` and perhaps `answer`, or `text`.  Pictures are opened when they
are drawn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from umcompress.data.overlap import _warning, overlap
from umcompress.documents.base import Task
from umcompress.documents.files import parse_json, read_bytes
from umcompress.documents.lines import lines_of, text_of
from umcompress.documents.scores import Score
from umcompress.errors import UsageError
from umcompress.extend.evaluation_base import Evaluation, ScoredItem
from umcompress.models.pictures import open_picture

if TYPE_CHECKING:
    from umcompress.models.runner import Runner

FORMS = "a prompt or a text a line, or JSON lines with `prompt`, with `image` and `question`, or with `text`"
JSON = (".jsonl", ".json", ".ndjson")
Row = dict[str, str]


class CalibrationFile(Evaluation):
    """A source of calibration items.  It scores nothing."""

    name: ClassVar[str] = "calibration file"
    key: ClassVar[str] = "calibration: data"
    tasks: ClassVar[tuple[Task, ...]] = ()
    data: Path

    def run(self, runner: Runner, out: Path, progress: Callable[[str], None]) -> dict[Task, Score]:
        return {}

    def check(self) -> None:
        self._rows()

    def _rows(self) -> list[Row]:
        asked = f"{self.key}: {self.data}"
        try:
            lines = lines_of(text_of(self.data))
        except FileNotFoundError as error:
            raise self._missing(asked) from error
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(asked, f"not readable: {error}", f"name a text file: {FORMS}") from error
        rows = [
            _row(line, f"{asked}, line {number}", self._is_json)
            for number, line in enumerate(lines, start=1)
            if line.strip()
        ]
        return [row for row in rows if row]

    @property
    def _is_json(self) -> bool:
        """Whether the lines are JSON, by the file's name: a text may begin with a brace, too."""
        return self.data.suffix.lower() in JSON

    def _missing(self, asked: str) -> UsageError:
        found = "no such file" if self.data.is_absolute() else f"no such file, seen from {Path.cwd()}"
        return UsageError(asked, found, f"name a text file: {FORMS}")

    def drawn(self, task: Task, samples: int, seed: int) -> list[Row]:
        """Rows that suit the task, `samples` of them.  UsageError where there are fewer."""
        rows = self._rows()
        if task == "understanding" and not self._is_json:
            rows = [{"text": row["prompt"]} for row in rows]
        fit = [row for row in rows if ("prompt" in row) == (task == "generation")]
        if len(fit) < samples:
            do = f"set samples: {len(fit)}, or give more" if fit else f"name a file that has some: {FORMS}"
            found = f"{len(fit)} of its {len(rows)} rows are for {task}"
            raise UsageError(f"calibration: {samples} samples from {self.data}", found, do)
        return random.Random(seed).sample(fit, samples)

    def calibration_items(self, task: Task, samples: int, seed: int) -> list[Any]:
        from umcompress.models.items import GenerationItem, TextSample, UnderstandingItem

        items: list[Any] = []
        for number, row in enumerate(self.drawn(task, samples, seed)):
            if "prompt" in row:
                items.append(GenerationItem(row["prompt"], seed + number))
            elif "text" in row:
                items.append(TextSample(row["text"]))
            else:
                file = self.data.parent / row["image"]
                picture = open_picture(file, f"the calibration picture {file}")
                items.append(UnderstandingItem(picture, row["question"], row.get("answer", "")))
        return items

    def overlaps(self, wanted: tuple[Task, int, int], evaluations: Sequence[Evaluation]) -> list[str]:
        """A line for each evaluation that scores some of the items drawn for (task, samples, seed)."""
        rows = self.drawn(*wanted)
        mine = [self._known(row) for row in rows]
        counted = ((e.name, overlap(mine, e.scored_items(wanted[0]))) for e in evaluations)
        return [_warning(name, len(rows), found) for name, found in counted if found.same or found.pictures]

    def _known(self, row: Row) -> ScoredItem:
        if "image" not in row:
            return ScoredItem(row.get("prompt", row.get("text", "")))
        picture = self.data.parent / row["image"]
        try:
            return ScoredItem(row["question"], (read_bytes(picture),))
        except OSError as error:
            raise UsageError(f"the calibration picture {picture}", f"not readable: {error}", "replace it") from error


def _row(line: str, asked: str, is_json: bool) -> Row:
    if not is_json:
        return {"prompt": line.strip()}
    try:
        row = parse_json(line)
    except ValueError as error:
        do = f"write {FORMS}; the name of a file of plain lines ends otherwise than in {', '.join(JSON)}"
        raise UsageError(asked, f"not JSON: {error}", do) from error
    keys = ("prompt", "image", "question", "answer", "text")
    found = {key: row[key] for key in keys if key in row} if isinstance(row, dict) else {}
    whole = "prompt" in found or "text" in found or {"image", "question"} <= found.keys()
    filled = (isinstance(value, str) and (value.strip() or key == "answer") for key, value in found.items())
    if not whole or not all(filled):
        raise UsageError(asked, f"{line.strip()[:80]}", f"write {FORMS}")
    return found
