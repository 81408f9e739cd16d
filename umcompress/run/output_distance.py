"""How far a model's outputs are from those of the unpruned model: what a search prices its choices by.

A loss rises and falls with luck, most of all where nearly every answer is right; the distance of outputs is zero only
where nothing changed, so that far fewer items tell two choices apart (Puzzle, arXiv 2411.19146, section 4.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from umcompress.documents.base import Task
from umcompress.documents.scores import KindScore, Score, mean_score
from umcompress.models.item_losses import trainer_of
from umcompress.train.losses import summed_distance

if TYPE_CHECKING:
    from umcompress.extend.evaluation_base import Evaluation
    from umcompress.models.items import TrainingItem
    from umcompress.models.runner import Runner
    from umcompress.models.trainer import Trainer, TrainingForward

BATCH = 8
# Rows whose distance is computed together in float64: of a large vocabulary each takes megabytes.
_ROWS = 64
# Outputs of the unpruned model are kept up to so many bytes, else computed again for each choice.
_KEPT_BYTES = 2 << 30


class OutputDistance:
    """Compares models with one that is held, on the held-out items of `task_loss`, read as training reads them.

    Understanding: the divergence KL(unpruned || changed) of a token, in nats; generation: the mean squared difference
    of the velocity, or, where pictures are tokens, the divergence of one of those.  A picture has one random time, the
    same for all models.
    """

    def __init__(self, loss: Evaluation, unpruned: Runner) -> None:
        options: Any = loss
        self.unpruned, self.seed = trainer_of(unpruned), int(options.seed)
        self.mark = f"{loss.json_values()} in batches"
        most = min(BATCH, unpruned.batch_size or BATCH)
        held_out = options.held_out([task for task in self.unpruned.tasks if task in unpruned.tasks])
        self.batches: dict[Task, list[list[TrainingItem]]] = {
            task: _batched(items, most) for task, items in held_out.items()
        }
        self._outputs: dict[tuple[Task, int], Mapping[str, Tensor]] = {}
        self._bytes = 0

    def losses(self, runner: Runner) -> dict[Task, Score]:
        """The mean loss of each batch, so that two models are compared batch by batch."""
        trainer, found = trainer_of(runner), dict[Task, Score]()
        for task, batches in self.batches.items():
            own = [_mean_loss(self._forward(trainer, task, number)) for number in range(len(batches))]
            found[task] = _score(own, self.mark)
        return found

    def compared(self, runner: Runner) -> tuple[dict[Task, Score], dict[Task, KindScore]]:
        """By task the losses, and the distances with the interval of their batches."""
        trainer, losses, distances = trainer_of(runner), dict[Task, Score](), dict[Task, KindScore]()
        for task, batches in self.batches.items():
            own, apart = list[float](), list[float]()
            for number in range(len(batches)):
                found = self._forward(trainer, task, number)
                own.append(_mean_loss(found))
                apart.append(mean_distance(found.outputs, self._reference(task, number)))
            losses[task], distances[task] = _score(own, self.mark), mean_score(apart)
        return losses, distances

    def _reference(self, task: Task, number: int) -> Mapping[str, Tensor]:
        if (known := self._outputs.get((task, number))) is not None:
            return known
        outputs = self._forward(self.unpruned, task, number).outputs
        size = sum(output.numel() * output.element_size() for output in outputs.values())
        if self._bytes + size <= _KEPT_BYTES:
            self._outputs[task, number] = outputs
            self._bytes += size
        return outputs

    @torch.no_grad()
    def _forward(self, trainer: Trainer, task: Task, number: int) -> TrainingForward:
        items = self.batches[task][number]
        draws = [np.random.default_rng((self.seed, 29, number, place)) for place in range(len(items))]
        return trainer.forward(trainer.batch(items, draws))


def _batched(items: Sequence[TrainingItem], most: int) -> list[list[TrainingItem]]:
    """Items in batches; of few items two batches, the least that has a spread."""
    size = max(1, min(most, len(items) // 2))
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def mean_distance(mine: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """The mean over rows, of all outputs, (rows, width) each; in float64."""
    total, rows = 0.0, 0
    for name, output in wanted.items():
        pairs = zip(torch.split(mine[name], _ROWS), torch.split(output, _ROWS), strict=True)
        total += sum(float(summed_distance(name, one.double(), other.double())) for one, other in pairs)
        rows += len(output)
    return total / rows


def _mean_loss(forward: TrainingForward) -> float:
    return float(torch.cat([loss.double() for loss in forward.losses.values()]).mean())


def _score(values: Sequence[float], items_of: str) -> Score:
    return Score(**mean_score(values).model_dump(), lower_is_better=True, items=tuple(values), items_of=items_of)
