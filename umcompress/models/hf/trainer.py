"""Plain language models in training: next-token prediction on texts.

B texts, T tokens of the longest, V vocabulary, N tokens with a loss: all but each text's first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor, nn, tensor
from torch.nn import functional
from transformers import PreTrainedModel

from umcompress.documents import Task
from umcompress.errors import ModelError
from umcompress.models.base import TextSample, TrainingBatch, TrainingForward, TrainingItem, UnderstandingItem
from umcompress.models.hf.inputs import speaks
from umcompress.models.hf.remote import trusted
from umcompress.models.hf.words import Words


class TextTrainer:
    """Texts are padded on the right; padding has no loss."""

    tasks: tuple[Task, ...] = ("understanding",)

    def __init__(self, model: PreTrainedModel, folder: Path) -> None:
        self.model, self.folder = model, folder

    @cached_property
    def words(self) -> Words:
        return Words(self.folder, trusted(self.model))

    def batch(self, items: Sequence[TrainingItem], draws: Sequence[np.random.Generator]) -> TrainingBatch:
        """Nothing is drawn."""
        rows = [self._ids(item) for item in items]
        longest, counted = max(map(len, rows)), sum(len(row) - 1 for row in rows)
        ids = tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return TrainingBatch((ids, mask), {"cross_entropy": counted, "logits": counted}, (ids.numel(),))

    def forward(self, batch: TrainingBatch) -> TrainingForward:
        device = next(self.model.parameters()).device
        ids, mask = (part.to(device) for part in batch.data)
        out: Tensor = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        wanted = mask[:, 1:].bool()
        logits = out[:, :-1][wanted]
        losses = functional.cross_entropy(logits.float(), ids[:, 1:][wanted], reduction="none")
        return TrainingForward({"cross_entropy": losses}, {"logits": logits})

    def _ids(self, item: TrainingItem) -> list[int]:
        if isinstance(item, TextSample):
            ids = self.words.ids(item.text)
        elif isinstance(item, UnderstandingItem) and item.image is None:
            ids = self.words.question(item.question) + self.words.more_ids(item.answer)
        else:
            raise ModelError(
                f"train {type(self.model).__name__}", f"an item of kind {type(item).__name__}",
                "give it texts: an evaluation whose training data is plain text",
            )  # fmt: skip
        if len(ids) < 2:
            raise ModelError(f"train on the text {item!r}"[:120], "fewer than two tokens", "give it longer texts")
        return ids


def trainer(model: nn.Module, folder: Path) -> TextTrainer:
    """ModelError for a model that does not predict text."""
    if not isinstance(model, PreTrainedModel) or not speaks(model):
        raise ModelError(
            f"train {type(model).__name__}", "it does not predict text", "training needs a causal language model"
        )
    return TextTrainer(model, folder)
