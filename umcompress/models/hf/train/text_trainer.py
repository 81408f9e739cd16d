"""Models of transformers in training: next-token prediction on texts, and on answers about pictures.

B rows of a portion, T tokens of the longest, V vocabulary, N tokens with a loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from umcompress.documents.base import Task
from umcompress.errors import ModelError
from umcompress.models.hf.anatomy.components import component_of
from umcompress.models.hf.ask.likelihoods import logits_from
from umcompress.models.hf.ask.picture_runner import PictureQuestionRunner
from umcompress.models.hf.ask.questions import (
    PreparedQuestion,
    batchable_groups,
    padded_batch,
    picture_list,
)
from umcompress.models.hf.ask.text_runner import TransformersRunner
from umcompress.models.items import TextSample, TrainingItem, UnderstandingItem
from umcompress.models.trainer import TrainingBatch, TrainingForward

Row = tuple[PreparedQuestion, int]


@dataclass(frozen=True)
class Portion:
    """What is read at once.  call: of the model, (B, T) ids among it.  wanted: (B, T), which tokens have a loss."""

    call: dict[str, Any]
    wanted: Tensor

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Portion:
        """rows: what is read, padded on the right; and in each where the tokens with a loss begin."""
        call = padded_batch([seen for seen, _ in rows], left=False)
        starts = torch.tensor([start for _, start in rows])
        wanted = call["attention_mask"].bool() & (torch.arange(call["input_ids"].shape[1]) >= starts[:, None])
        return cls(call, wanted)


class TextTrainer:
    """Of a text all tokens but the first have a loss, of a question with an answer those of the answer."""

    tasks: tuple[Task, ...] = ("understanding",)
    # Whether items with pictures are read one at a time.
    pictures_alone = False

    def __init__(self, runner: TransformersRunner) -> None:
        self.runner, self.model = runner, runner.model

    def batch(self, items: Sequence[TrainingItem], draws: Sequence[np.random.Generator]) -> TrainingBatch:
        """Nothing is drawn."""
        portions = self._portions(items)
        counted = sum(int(portion.wanted.sum()) for portion in portions)
        return batch_of(portions, {"cross_entropy": counted, "logits": counted}, portions)

    def forward(self, batch: TrainingBatch) -> TrainingForward:
        losses, logits = self._losses_and_logits(batch.data)
        return TrainingForward({"cross_entropy": losses}, {"logits": logits})

    @torch.no_grad()
    def losses(
        self, items: Sequence[TrainingItem], draws: Sequence[np.random.Generator], times: Sequence[float]
    ) -> Tensor:
        """(items, 1): nothing is drawn, there are no times."""
        rows = [self._row(item) for item in items]
        found = torch.zeros(len(rows), 1, dtype=torch.float64)
        prepared = {index: question for index, (question, _) in enumerate(rows)}
        for part in batchable_groups(prepared, padded=True, pictures_alone=self.pictures_alone):
            portion = Portion.of([rows[index] for index in part])
            counts = portion.wanted.sum(1).tolist()
            for index, losses in zip(part, torch.split(self._losses_and_logits([portion])[0], counts), strict=True):
                found[index] = losses.double().mean()
        return found

    def check(self, items: Sequence[TrainingItem]) -> None:
        for item in items:
            self._row(item)

    def blocked(self, name: str, items: Sequence[TrainingItem]) -> str:
        return ""

    def _portions(self, items: Sequence[TrainingItem]) -> list[Portion]:
        rows = [self._row(item) for item in items]
        prepared = {index: question for index, (question, _) in enumerate(rows)}
        parts = batchable_groups(prepared, padded=True, pictures_alone=self.pictures_alone)
        return [Portion.of([rows[index] for index in part]) for part in parts]

    def _row(self, item: TrainingItem) -> Row:
        if isinstance(item, TextSample):
            ids, start = self.runner.tokenizer.ids(item.text)[: self.runner.max_text_tokens], 1
        elif isinstance(item, UnderstandingItem) and not picture_list(item.image):
            asked = self.runner.question_ids(item.question)
            ids, start = asked + self._answer_ids(item.question, item.answer), len(asked)
        else:
            raise ModelError(
                f"train {type(self.model).__name__}", f"an item of kind {type(item).__name__}",
                "give it texts: an evaluation whose training data is plain text, or a file of them as `data`",
            )  # fmt: skip
        if len(ids) < 2 or len(ids) == start:
            raise ModelError(f"train on the text {item!r}"[:120], "fewer than two tokens", "give it longer texts")
        return PreparedQuestion(ids, {}, {}), start

    def _answer_ids(self, question: str, answer: str) -> list[int]:
        return self.runner.tokenizer.answer_ids(question, answer)

    def _losses_and_logits(self, portions: Sequence[Portion]) -> tuple[Tensor, Tensor]:
        """Losses (N,) and logits (N, V)."""
        losses, logits = [], []
        for portion in portions:
            first = int(portion.wanted.any(0).nonzero()[0]) - 1
            call = self._on_device(portion.call)
            wanted = portion.wanted[:, first + 1 :].to(call["input_ids"].device)
            with self._explained_errors():
                rows = logits_from(self.model, call, first)[:, :-1][wanted]
            targets = call["input_ids"][:, first + 1 :][wanted]
            losses.append(cross_entropy(rows, targets))
            logits.append(rows)
        return torch.cat(losses), torch.cat(logits)

    def _on_device(self, call: dict[str, Any]) -> dict[str, Any]:
        return {name: value.to(self.runner.device) for name, value in call.items()}

    def _explained_errors(self) -> AbstractContextManager[None]:
        return nullcontext()


class VisionLanguageTrainer(TextTrainer):
    """Pictures, question and answer go through vision tower and language model, as they are asked and answered."""

    def __init__(self, runner: PictureQuestionRunner) -> None:
        super().__init__(runner)
        self.preparer, self.picture_runner, self.pictures_alone = runner.preparer, runner, not runner.may_share_batch

    def blocked(self, name: str, items: Sequence[TrainingItem]) -> str:
        pictured = any(isinstance(item, UnderstandingItem) and picture_list(item.image) for item in items)
        return "" if pictured or component_of(name) != "understanding" else "no questions about pictures are trained on"

    def _row(self, item: TrainingItem) -> Row:
        images = picture_list(item.image) if isinstance(item, UnderstandingItem) else []
        if not images or not isinstance(item, UnderstandingItem):
            return super()._row(item)
        asked = self.preparer.prepare(images, item.question)
        said = self.preparer.answer_ids(len(images), item.question, item.answer)
        return self.preparer.with_answer(asked, said), len(asked.ids)

    def _answer_ids(self, question: str, answer: str) -> list[int]:
        if not self.preparer.has_chat_template:
            return super()._answer_ids(question, answer)
        return self.preparer.answer_ids(0, question, answer)

    def _on_device(self, call: dict[str, Any]) -> dict[str, Any]:
        return self.picture_runner.on_device(call)

    def _explained_errors(self) -> AbstractContextManager[None]:
        return self.picture_runner.explaining_wrong_placeholders()


def batch_of(data: Any, rows: dict[str, int], portions: Sequence[Portion], *masks: Tensor) -> TrainingBatch:
    """masks: (B, T) of what is read after the portions, 1 where there is a token."""
    kept = torch.cat([mask.flatten().bool() for mask in (*(p.call["attention_mask"] for p in portions), *masks)])
    return TrainingBatch(data, rows, (int(kept.sum()),), None if kept.all() else kept)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy (N,) of logits (N, V), in float32 at least."""
    return functional.cross_entropy(
        logits.float() if logits.dtype.itemsize < 4 else logits, targets, reduction="none"
    )
