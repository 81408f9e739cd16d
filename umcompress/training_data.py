"""Training data of the user's own, from a file of JSON lines."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from umcompress.calibration_data import CalibrationFile, Row, opened
from umcompress.documents import Task
from umcompress.errors import UsageError

if TYPE_CHECKING:
    from umcompress.models.base import TrainingItem

FORMS = "JSON lines with `text`, with `image`, `question` and `answer`, or with `image` and `prompt`"
_FITS: dict[Task, Callable[[Row], bool]] = {
    "understanding": lambda row: "text" in row or {"image", "question", "answer"} <= row.keys(),
    "generation": lambda row: {"image", "prompt"} <= row.keys(),
}


class TrainingFile(CalibrationFile):
    """A source of training items: texts, questions about pictures with answers, pictures with prompts."""

    name: ClassVar[str] = "training file"

    @cached_property
    def _by_task(self) -> dict[Task, list[Row]]:
        rows = self._rows()
        return {task: [row for row in rows if fits(row)] for task, fits in _FITS.items()}

    def training_items(self, task: Task, count: int, seed: int) -> list[TrainingItem]:
        """Drawn anew for each seed; none twice, as long as there are enough."""
        rows = self._by_task[task]
        if not rows:
            raise UsageError(f"train {task} on {self.data}", "no row of it is for that", f"name a file of {FORMS}")
        draw = random.Random(seed)
        chosen = draw.sample(rows, count) if count <= len(rows) else draw.choices(rows, k=count)
        return [self._item(row, task) for row in chosen]

    def _item(self, row: Row, task: Task) -> TrainingItem:
        from umcompress.models.base import ImageText, TextSample, UnderstandingItem

        if task == "understanding" and "text" in row:
            return TextSample(row["text"])
        picture = opened(self.data.parent / row["image"])
        if task == "generation":
            return ImageText(picture, row["prompt"])
        return UnderstandingItem(picture, row["question"], row["answer"])
