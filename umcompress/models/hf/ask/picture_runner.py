"""Questions about pictures: answers, log-likelihoods, calibration.

The runner's `QuestionPreparer` turns a question into tokens and pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from umcompress.errors import ModelError
from umcompress.models.hf.ask.greedy import greedily
from umcompress.models.hf.ask.likelihoods import logits_from
from umcompress.models.hf.ask.questions import (
    PreparedQuestion,
    QuestionPreparer,
    batches,
    padded_batch,
    picture_list,
)
from umcompress.models.hf.ask.rest import at_rest, reads_by_length
from umcompress.models.hf.ask.text_runner import TransformersRunner
from umcompress.models.items import GenerationItem, TextSample, UnderstandingItem
from umcompress.models.runner import Likelihood, likelihood
from umcompress.progress import passed


class PictureQuestionRunner(TransformersRunner):
    """Understanding: pictures and text in, text out. What shares a batch changes results only by rounding."""

    reads_pictures = True
    preparer: QuestionPreparer
    # Whether several questions may be padded into one batch; else they are asked one by one.
    may_share_batch = True

    @torch.no_grad()
    def answer(self, images: Sequence[Any], questions: Sequence[str], max_new_tokens: int = 16) -> list[str]:
        """Greedy answers; the prompt is the pictures, then the question, in the processor's chat template."""
        answers = [""] * len(questions)
        shown, bare = _split_by_pictures(images)
        prepared = {index: self.preparer.prepare(picture_list(images[index]), questions[index]) for index in shown}
        for part in self._batches(prepared, max_new_tokens):
            call = self.on_device(padded_batch([prepared[index] for index in part], left=True))
            # Models that paint are guided unless told otherwise.
            greedy = greedily(self.model, max_new_tokens, guidance_scale=1.0)
            with self.explaining_wrong_placeholders(), greedy as settings:
                out = self.model.generate(**call, generation_config=settings)
            for index, ids, row in zip(part, call["input_ids"].tolist(), out, strict=True):
                # generate\(\) of some models returns the prompt, too.
                begin = len(ids) if row[: len(ids)].tolist() == ids else 0
                answers[index] = self.tokenizer.text(row[begin:]).strip()
            passed("questions", len(part))
        texts = super().answer([None] * len(bare), [questions[index] for index in bare], max_new_tokens)
        for index, text in zip(bare, texts, strict=True):
            answers[index] = text
        return answers

    @torch.no_grad()
    def score(
        self, images: Sequence[Any], prompts: Sequence[str | None], continuations: Sequence[Sequence[str]]
    ) -> list[list[Likelihood]]:
        """As `Runner.score`. After pictures in a chat a continuation is an answer, a turn of its own."""
        shown, bare = _split_by_pictures(images)
        found: list[list[Likelihood]] = [[] for _ in prompts]
        texts = super().score(
            [None] * len(bare), [prompts[index] for index in bare], [continuations[index] for index in bare]
        )
        for index, likelihoods in zip(bare, texts, strict=True):
            found[index] = likelihoods
        wanted: dict[int, tuple[int, Tensor]] = {}
        prepared: dict[int, PreparedQuestion] = {}
        for index in shown:
            question = self.preparer.prepare(picture_list(images[index]), prompts[index] or "")
            for text in continuations[index]:
                answer = text.lstrip() if self.preparer.has_chat_template else text
                continuation = self.tokenizer.continuation_ids(answer)
                place = len(wanted)
                prepared[place] = self.preparer.with_answer(question, continuation)
                wanted[place] = index, torch.tensor(continuation, dtype=torch.long)
        scored: dict[int, Likelihood] = {}
        for part in self._batches(prepared, 0):
            # Logits from the token before the first answer token on: the others are not computed.
            first = min(len(prepared[place].ids) - len(wanted[place][1]) for place in part) - 1
            for place, rows in zip(part, self._logits([prepared[place] for place in part], first), strict=True):
                ids = wanted[place][1]
                end = len(prepared[place].ids) - 1 - first
                scored[place] = likelihood(rows[end - len(ids) : end], ids)
        for place, (index, _) in wanted.items():
            found[index].append(scored[place])
        return found

    def _logits(self, questions: Sequence[PreparedQuestion], first: int = 0) -> Tensor:
        """(B, T - first, V) logits; the shorter rows are padded on the right, which no token before looks at."""
        with self.explaining_wrong_placeholders(), at_rest(self.model):
            return logits_from(self.model, self.on_device(padded_batch(questions, left=False)), first)

    @contextmanager
    def explaining_wrong_placeholders(self) -> Iterator[None]:
        """ModelError for a processor whose placeholder tokens are not as many as the picture has features."""
        try:
            yield
        except ValueError as error:
            if "do not match" not in str(error):
                raise
            raise ModelError(
                f"the processor of {self.folder}", str(error).splitlines()[0], "copy the model's own processor files"
            ) from error

    def _batches(
        self, prepared: Mapping[int, PreparedQuestion], new_tokens: int, padded: bool = True
    ) -> Iterator[list[int]]:
        alone = not self.may_share_batch or reads_by_length(self.model)
        return batches(prepared, new_tokens, padded, pictures_alone=alone)

    def on_device(self, call: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self._to_device(value) if isinstance(value, Tensor) else value for name, value in call.items()}

    @torch.no_grad()
    def feed(
        self,
        items: Sequence[UnderstandingItem | GenerationItem | TextSample],
        at_time: Callable[[float], None] | None = None,
    ) -> None:
        """Pictures, question and answer through vision tower and language model; items of one length share a batch."""
        pictured = [item for item in items if isinstance(item, UnderstandingItem) and picture_list(item.image)]
        theirs = {id(item) for item in pictured}
        super().feed([item for item in items if id(item) not in theirs])
        prepared: dict[int, PreparedQuestion] = {}
        for index, item in enumerate(pictured):
            question = self.preparer.prepare(picture_list(item.image), item.question)
            prepared[index] = self.preparer.with_answer(question, self.tokenizer.continuation_ids(item.answer))
        for part in self._batches(prepared, 0, padded=False):
            call = self.on_device(padded_batch([prepared[index] for index in part], left=False))
            # No logits: no statistic reads them.
            with self.explaining_wrong_placeholders(), at_rest(self.model):
                self.model.base_model(**call, use_cache=False)
            passed("samples", len(part))


def _split_by_pictures(images: Sequence[Any]) -> tuple[list[int], list[int]]:
    """Indices of the entries with pictures, and of those without."""
    shown = [index for index, entry in enumerate(images) if picture_list(entry)]
    return shown, [index for index, entry in enumerate(images) if not picture_list(entry)]
