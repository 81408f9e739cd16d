"""What an evaluation is: typed options, and scores for the tasks that a model can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from umcompress.documents.scores import Score
from umcompress.errors import PlanError
from umcompress.recipe.recipe import Document, Task

if TYPE_CHECKING:
    from umcompress.models.items import TrainingItem
    from umcompress.models.runner import Runner


@dataclass(frozen=True)
class ScoredItem:
    """A prompt, or a question about pictures (encoded files), that an evaluation scores."""

    text: str
    pictures: tuple[bytes | Path, ...] = ()


class Evaluation(Document, ABC):
    """Scores a model on one or more tasks.  The fields of a subclass are its options in a recipe."""

    name: ClassVar[str]
    tasks: ClassVar[tuple[Task, ...]] = ("understanding", "generation")
    compares: ClassVar[bool] = False

    def check(self) -> None:
        """Look, before hours are spent, whether what `run` reads is there.  UsageError says what is missing."""

    def suits(self, runner: Runner) -> None:
        """Look whether a model can be scored, by its shapes and files alone.  UsageError says why it cannot.

        runner: of a skeleton of the model.
        """

    @abstractmethod
    def run(self, runner: Runner, out: Path, progress: Callable[[str], None]) -> dict[Task, Score]:
        """Score what `runner` answers and generates; leave artifacts (answers, images) in `out`, which is there."""

    def compare(
        self, runner: Runner, out: Path, progress: Callable[[str], None], reference: Path
    ) -> dict[Task, Score]:
        """As `run`, for a model that was made from another one; `reference` is what `run` left of that one.

        An evaluation that `compares` has something to say only here.
        """
        return self.run(runner, out, progress)

    def scored_items(self, task: Task) -> Iterable[ScoredItem]:
        """What `run` scores, so that calibration data can be held against it.  Default: nothing that is known."""
        return ()

    def calibration_items(self, task: Task, samples: int, seed: int) -> list[Any]:
        """Items for Runner.feed, disjoint from what `run` scores.  Default: none, so not a source."""
        raise PlanError(
            asked=f"calibration data for {task} from {self.name}",
            found=f"the evaluation {self.name} provides none",
            do="leave `calibration.source` out, or name an evaluation that provides data",
        )

    def training_items(self, task: Task, count: int, seed: int) -> list[TrainingItem]:
        """`count` items to train `task` on, other ones for another seed; disjoint from what `run` scores."""
        raise PlanError(
            asked=f"training data for {task} from {self.name}",
            found=f"the evaluation {self.name} provides none",
            do="name an evaluation that provides some with the step's `source`, or a file with its `data`",
        )

    def held_out_items(self, task: Task, count: int, seed: int) -> list[TrainingItem]:
        """At most `count` items like those of `training_items`, of which that one never gives any: for a loss."""
        raise PlanError(
            asked=f"held-out items for {task} from {self.name}",
            found=f"the evaluation {self.name} provides none",
            do="name an evaluation that provides some with `source`, or a file with `data`",
        )
