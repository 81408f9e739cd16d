"""What training asks of a model: batches, and a forward with losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from umcompress.documents.base import Task
from umcompress.models.items import TrainingItem


@dataclass(frozen=True)
class TrainingBatch:
    """Items made ready for `Trainer.forward`, all random numbers drawn.

    rows: how many rows each loss and each distilled output has in this batch.
    block_rows: how many rows each tensor has that a block of the main stack returns, all but its last dimension
    flattened; after them, if the model has another stack with other rows, how many those are.
    kept: (rows,) of those which are no padding, over all calls of a block in their order; None: all.  `block_rows`
    counts no padding.
    """

    data: Any
    rows: Mapping[str, int]
    block_rows: tuple[int, ...]
    kept: Tensor | None = None


@dataclass(frozen=True)
class TrainingForward:
    """`losses`: the task's own, one number a row, (rows,).  `outputs`: what is distilled, (rows, width).

    Named alike in every family: losses `flow`, `cross_entropy` and, where pictures are tokens, `codes`; outputs
    `velocity`, `logits` and `code_logits`.  What denoises and predicts no velocity has the loss `denoising` and the
    output `prediction` instead.
    """

    losses: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


class Trainer(Protocol):
    """Runs one model forward for training.  Teacher and student, two models of a family, share batches."""

    @property
    def tasks(self) -> tuple[Task, ...]: ...

    def batch(self, items: Sequence[TrainingItem], draws: Sequence[np.random.Generator]) -> TrainingBatch:
        """`draws[i]` gives all random numbers of item i, so that they do not depend on what shares its batch."""

    def check(self, items: Sequence[TrainingItem]) -> None:
        """UsageError for an item that the model cannot be trained on.  Shapes will do: no weight is read."""

    def blocked(self, name: str, items: Sequence[TrainingItem]) -> str:
        """Why the parameter `name` cannot learn from such items; "" where nothing is known to be in the way."""

    def forward(self, batch: TrainingBatch) -> TrainingForward:
        """One forward with gradients, in the model's own modes; block outputs are taken by hooks."""

    def losses(
        self, items: Sequence[TrainingItem], draws: Sequence[np.random.Generator], times: Sequence[float]
    ) -> Tensor:
        """(items, columns) float64: the mean loss of each of items of one task, nothing left out, without gradients.

        Of pictures that are denoised a column for each of `times`: 0 to 1 from picture to noise, before they are
        shifted as the sampler's are; `draws[i]` gives the noise of item i, the same at all times.  Else one column.
        """
