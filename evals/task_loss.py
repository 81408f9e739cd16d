"""The held-out loss of each task: what feels a change long before accuracies do."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from umcompress.extend import (
    Evaluation,
    PlanError,
    Progress,
    Score,
    Task,
    UsageError,
    find_evaluation,
    mean_score,
    processes,
)

if TYPE_CHECKING:
    from umcompress.extend import Runner, TrainingItem

BATCH = 16
Time = Annotated[float, Field(gt=0, lt=1)]


class TaskLoss(Evaluation):
    """The loss of held-out items, lower is better.

    Understanding: the cross-entropy of a token of the answer, or of the text.  Generation: the flow-matching error of
    pictures at fixed times, with the same noise for every model; of models whose pictures are tokens, the cross-entropy
    of a token of the picture.  Every item weighs alike.  Its values are kept, so that a change is compared item by
    item, with an interval far narrower than that of an accuracy.
    """

    name: ClassVar[str] = "task_loss"
    source: str = Field(default="scenes", description="the evaluation that provides held-out items")
    data: Path | None = Field(
        default=None,
        description="held-out items of your own in place of it, a file like those that training takes; never one that "
        "is trained on",
    )
    items: PositiveInt = Field(default=256, description="items of each task, or all that there are")
    times: tuple[Time, ...] = Field(
        default=(0.1, 0.3, 0.5, 0.7, 0.9), min_length=1,
        description="times at which pictures are noised, from picture (0) to noise (1), before the sampler's shift",
    )
    limit: PositiveInt | None = Field(default=None, description="at most so many items of each task")
    seed: NonNegativeInt = Field(default=0, description="draws the items and the noise")

    @model_validator(mode="after")
    def _one_origin(self) -> TaskLoss:
        if self.data is not None and "source" in self.model_fields_set:
            raise ValueError("`source` and `data` are both given; leave one out")
        return self

    @cached_property
    def provider(self) -> Evaluation:
        """Where the items come from."""
        if self.data is None:
            return find_evaluation(self.source, Path())()
        from umcompress.extend import TrainingFile

        return TrainingFile(data=self.data)

    def check(self) -> None:
        self.provider.check()

    def suits(self, runner: Runner) -> None:
        """UsageError where nothing can be scored; ModelError where the model cannot have a loss of such items."""
        from umcompress.extend import trainer_of

        trainer = trainer_of(runner)
        for task in self._scored(trainer.tasks):
            trainer.check(self.provider.held_out_items(task, 1, self.seed))

    def _scored(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks of the model for which there are items."""
        offers = getattr(self.provider, "offers", lambda task: True)
        found = [task for task in tasks if offers(task)]
        if not found:
            raise UsageError(
                f"task_loss on {self.data or self.source}", f"it has nothing for {' or '.join(tasks)}",
                "name held-out items of the model's own tasks with `source` or `data`",
            )  # fmt: skip
        return found

    def run(self, runner: Runner, out: Path, progress: Callable[[str], None]) -> dict[Task, Score]:
        from umcompress.extend import trainer_of

        trainer, scores, rows = trainer_of(runner), dict[Task, Score](), list[dict[str, Any]]()
        batch = min(BATCH, runner.batch_size or BATCH)
        for task in self._scored([task for task in trainer.tasks if task in runner.tasks]):
            started = time.monotonic()
            found = self._found(task)
            mine = sum(min(batch, len(found) - start) for start in processes.share(range(0, len(found), batch)))
            with Progress(f"task_loss of {task}", "items", mine, 0, progress) as shown:
                losses = self._losses(trainer, found, batch, shown)
            scores[task] = self._score(losses, found, time.monotonic() - started)
            rows += [
                {"task": task, "item": _text(item), "losses": each} for item, each in zip(found, losses, strict=True)
            ]
        if processes.rank() == 0:
            out.mkdir(parents=True, exist_ok=True)
            (out / "losses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return scores

    def held_out(self, tasks: Sequence[Task]) -> dict[Task, list[TrainingItem]]:
        """The items that are scored of each of a model's tasks for which there are any."""
        return {task: self._found(task) for task in self._scored(tasks)}

    def _found(self, task: Task) -> list[TrainingItem]:
        count = self.items if self.limit is None else min(self.items, self.limit)
        found = self.provider.held_out_items(task, count, self.seed)
        if not found:
            raise PlanError(f"task_loss of {task}", f"{self.data or self.source} gave no item", "name another source")
        return found

    def _losses(
        self, trainer: Any, items: Sequence[TrainingItem], batch: int, shown: Progress
    ) -> list[list[float]]:
        """Of each item its loss at each time.  Batches do not depend on the number of processes."""
        import numpy as np

        mine: list[tuple[int, list[list[float]]]] = []
        for start in processes.share(range(0, len(items), batch)):
            some = items[start : start + batch]
            draws = [np.random.default_rng((self.seed, 17, start + place)) for place in range(len(some))]
            mine.append((start, trainer.losses(some, draws, self.times).cpu().tolist()))
            shown.advance(len(some))
        parts = sorted((part for parts in processes.gather(mine) for part in parts), key=lambda part: part[0])
        return [item for _, part in parts for item in part]

    def _score(self, losses: Sequence[Sequence[float]], items: Sequence[TrainingItem], seconds: float) -> Score:
        values = [sum(each) / len(each) for each in losses]
        if len(values) == 1:
            raise UsageError("task_loss of a single item", "it says nothing of its spread", "give it more items")
        columns = list(zip(*losses, strict=True))
        times = self.times if len(columns) > 1 else ()
        by_time = {f"time {at:g}": mean_score(column) for at, column in zip(times, columns, strict=False)}
        return Score(
            **mean_score(values).model_dump(), by_kind=by_time, lower_is_better=True, items=tuple(values),
            items_of=_digest(items), seconds=seconds,
        )


def _text(item: TrainingItem) -> str:
    words = (getattr(item, name, None) for name in ("prompt", "question", "answer", "text"))
    return " / ".join(word for word in words if word)


def _digest(items: Sequence[TrainingItem]) -> str:
    """Which items these are, pictures included."""
    digest = hashlib.sha256()
    for part in _parts(items):
        digest.update(len(part).to_bytes(8) + part)
    return digest.hexdigest()[:16]


def _parts(items: Sequence[TrainingItem]) -> Iterator[bytes]:
    import numpy as np

    for item in items:
        yield _text(item).encode()
        image = getattr(item, "image", None)
        for picture in image if isinstance(image, list | tuple) else [image] if image is not None else []:
            yield np.ascontiguousarray(np.asarray(picture)).tobytes()
