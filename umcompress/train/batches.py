"""The batches of each training step.  They depend on the seed and the step, not on the number of processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from umcompress.documents.base import TASKS, Task
from umcompress.documents.training_options import TrainingOptions
from umcompress.errors import CheckError, UsageError
from umcompress.models.items import TrainingItem
from umcompress.models.trainer import Trainer, TrainingBatch

Draw = Callable[[Task, int, int], list[TrainingItem]]


@dataclass(frozen=True)
class StepTotals:
    """Numbers of rows in a whole step, over all its batches and processes: the denominators of means."""

    rows: Mapping[str, int]
    block_rows: tuple[int, ...]

    @classmethod
    def of(cls, batches: Sequence[TrainingBatch]) -> StepTotals:
        return cls.merge([cls(batch.rows, batch.block_rows) for batch in batches])

    @classmethod
    def merge(cls, parts: Sequence[StepTotals]) -> StepTotals:
        names = sorted({name for part in parts for name in part.rows})
        rows = {name: sum(part.rows.get(name, 0) for part in parts) for name in names}
        return cls(rows, tuple(map(sum, zip(*(part.block_rows for part in parts), strict=True))))


class Feed:
    """Batches of one process, number `rank` of `world`."""

    def __init__(
        self, options: TrainingOptions, shares: Mapping[Task, float], draw: Draw, trainer: Trainer,
        rank: int = 0, world: int = 1,
    ) -> None:  # fmt: skip
        self.options, self.draw, self.trainer, self.rank, self.world = options, draw, trainer, rank, world
        self.counts = split_by_share(options.batch_size, shares)
        parts = world * options.gradient_accumulation
        if options.batch_size % parts:
            raise UsageError(
                f"batch_size {options.batch_size} on {world} processes, each in {options.gradient_accumulation} parts",
                f"it is no multiple of {parts}", "choose a batch_size that is, or another number of processes",
            )  # fmt: skip

    def step(self, step: int) -> list[TrainingBatch]:
        """This process's batches of a step, one for each accumulated part."""
        parts = self.options.gradient_accumulation
        return [self._batch(step, self.rank * parts + part, self.world * parts) for part in range(parts)]

    def everything(self, step: int) -> list[TrainingBatch]:
        """The batches of all processes."""
        parts = self.world * self.options.gradient_accumulation
        return [self._batch(step, part, parts) for part in range(parts)]

    def _batch(self, step: int, part: int, parts: int) -> TrainingBatch:
        items = self._items(step)
        size = len(items) // parts
        mine = range(part * size, (part + 1) * size)
        draws = [np.random.default_rng((self.options.seed, 1, step, index)) for index in mine]
        return self.trainer.batch([items[index] for index in mine], draws)

    def _items(self, step: int) -> list[TrainingItem]:
        """The items of all processes; the tasks are mixed evenly, so that every part has some of each."""
        placed: list[tuple[float, int, TrainingItem]] = []
        for number, (task, count) in enumerate(self.counts.items()):
            seed = int(np.random.default_rng((self.options.seed, 2, step, number)).integers(2**31))
            found = self.draw(task, count, seed)
            if len(found) != count:
                raise CheckError(f"{count} training items for {task}", f"the source gave {len(found)}")
            placed += [((index + 0.5) / count, number, item) for index, item in enumerate(found)]
        return [item for _, _, item in sorted(placed, key=lambda entry: entry[:2])]


def split_by_share(count: int, shares: Mapping[Task, float]) -> dict[Task, int]:
    """`count` items over the tasks in these proportions, by largest remainders; each task gets at least one."""
    tasks = [task for task in TASKS if task in shares]
    if count < len(tasks):
        raise UsageError(f"batch_size {count}", f"{len(tasks)} tasks are trained", f"choose at least {len(tasks)}")
    whole = sum(shares.values())
    exact = {task: shares[task] * count / whole for task in tasks}
    counts = {task: max(1, int(exact[task])) for task in tasks}
    order = sorted(tasks, key=lambda task: exact[task] - counts[task], reverse=True)
    while (missing := count - sum(counts.values())) != 0:
        if missing > 0:
            for task in order[:missing]:
                counts[task] += 1
        else:
            counts[max(tasks, key=lambda task: counts[task])] -= 1
    return counts
