"""Training data from a file of JSON lines of the user's."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from umcompress.data.calibration_file import CalibrationFile, Row
from umcompress.documents.base import Task
from umcompress.documents.files import is_regular
from umcompress.errors import UsageError
from umcompress.models.pictures import open_picture

if TYPE_CHECKING:
    from umcompress.models.items import TrainingItem

FORMS = (
    "JSON lines with `text`, with `image`, `question` and `answer`, with `image` and `prompt`, or with `prompt` alone, "
    "which the unpruned model paints"
)
_KINDS: dict[Task, tuple[Callable[[Row], bool], ...]] = {
    "understanding": (
        lambda row: "text" in row,
        lambda row: "text" not in row and {"image", "question"} <= row.keys() and bool(row.get("answer", "").strip()),
    ),
    "generation": (lambda row: {"image", "prompt"} <= row.keys(),),
}


class TrainingFile(CalibrationFile):
    """A source of training items: texts, questions about pictures with answers, pictures with prompts.

    Prompts alone are taken where no row has a picture with its prompt.
    """

    name: ClassVar[str] = "training file"
    key: ClassVar[str] = "training data"

    @cached_property
    def _by_task(self) -> dict[Task, list[Row]]:
        rows = self._rows()
        found = {task: [row for row in rows if any(fits(row) for fits in kinds)] for task, kinds in _KINDS.items()}
        if not found["generation"]:
            found["generation"] = [row for row in rows if "prompt" in row and "image" not in row]
        return found

    def check(self) -> None:
        """Rows, and whether their pictures are there."""
        pictures = {row["image"] for rows in self._by_task.values() for row in rows if "image" in row}
        missing = sorted(name for name in pictures if not is_regular(self.data.parent / name))
        if missing:
            raise UsageError(
                f"train on {self.data}", f"{len(missing)} of its {len(pictures)} pictures are not there: "
                + ", ".join(missing[:3]), "name pictures as seen from the folder of this file",
            )  # fmt: skip

    def training_items(self, task: Task, count: int, seed: int) -> list[TrainingItem]:
        """Draw `count` items at random by `seed`, without repetition as long as there are enough."""
        rows = self._found(task)
        draw = random.Random(seed)
        chosen = draw.sample(rows, count) if count <= len(rows) else draw.choices(rows, k=count)
        return [self._item(row, task) for row in chosen]

    def held_out_items(self, task: Task, count: int, seed: int) -> list[TrainingItem]:
        """Of a file that is not trained on: `count` of its rows, or all of them where there are fewer."""
        rows = self._found(task)
        if task == "generation" and "image" not in rows[0]:
            raise UsageError(
                f"the loss of pictures of {self.data}", "its prompts have no pictures", "give rows `image` and `prompt`"
            )
        return self.training_items(task, min(count, len(rows)), seed)

    def offers(self, task: Task) -> bool:
        """Whether any row is for it."""
        return bool(self._by_task[task])

    def examples(self, task: Task) -> list[TrainingItem]:
        """One of each kind of row."""
        rows = self._found(task)
        firsts = [next((row for row in rows if fits(row)), None) for fits in _KINDS[task]]
        return [self._item(row, task) for row in firsts if row is not None] or [self._item(rows[0], task)]

    def _found(self, task: Task) -> list[Row]:
        if not self._by_task[task]:
            raise UsageError(f"train {task} on {self.data}", "no row of it is for that", f"name a file of {FORMS}")
        return self._by_task[task]

    def _item(self, row: Row, task: Task) -> TrainingItem:
        from umcompress.models.items import GenerationItem, ImageText, TextSample, UnderstandingItem

        if "image" not in row and "prompt" in row:
            return GenerationItem(row["prompt"], 0)
        if task == "understanding" and "text" in row:
            return TextSample(row["text"])
        file = self.data.parent / row["image"]
        picture = open_picture(file, f"the training picture {file}")
        if task == "generation":
            return ImageText(picture, row["prompt"])
        return UnderstandingItem(picture, row["question"], row["answer"])
