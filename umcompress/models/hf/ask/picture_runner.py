"""Questions about pictures: answers, log-likelihoods, calibration. What a model sees with is its `Sight`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from umcompress.errors import ModelError
from umcompress.models.hf.ask.greedy import greedily
from umcompress.models.hf.ask.questions import Seen, Sight, logits_from, several, shared, together
from umcompress.models.hf.ask.rest import at_rest, reads_by_length
from umcompress.models.hf.ask.text_runner import TransformersRunner
from umcompress.models.items import GenerationItem, TextSample, UnderstandingItem
from umcompress.models.runner import Likelihood, likelihood


class AskedRunner(TransformersRunner):
    """Understanding: pictures and text in, text out. What shares a batch changes results only by rounding."""

    sees = True
    sight: Sight
    # Whether questions may share a batch.
    proved = True

    @torch.no_grad()
    def answer(self, images: Sequence[Any], questions: Sequence[str], max_new_tokens: int = 16) -> list[str]:
        """Greedy answers, pictures first, then the question, in the words of the processor's chat template."""
        answers = [""] * len(questions)
        shown, bare = _split_by_pictures(images)
        asked = {index: self.sight.asked(several(images[index]), questions[index]) for index in shown}
        for part in self._shared(asked, max_new_tokens):
            call = self.on_device(together([asked[index] for index in part], left=True))
            # Models that paint are guided unless told otherwise.
            with self.places_fit(), greedily(self.model, max_new_tokens, guidance_scale=1.0) as settings:
                out = self.model.generate(**call, generation_config=settings)
            for index, ids, row in zip(part, call["input_ids"].tolist(), out, strict=True):
                # Some give the question back.
                begin = len(ids) if row[: len(ids)].tolist() == ids else 0
                answers[index] = self.words.text(row[begin:]).strip()
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
        wanted: dict[int, tuple[int, list[int]]] = {}
        asked: dict[int, Seen] = {}
        for index in shown:
            seen = self.sight.asked(several(images[index]), prompts[index] or "")
            for text in continuations[index]:
                more = self.words.more_ids(text.lstrip() if self.sight.chats else text)
                asked[len(wanted)], wanted[len(wanted)] = self.sight.longer(seen, more), (index, more)
        scored: dict[int, Likelihood] = {}
        for part in self._shared(asked, 0):
            # From the first place before an answer on.
            first = min(len(asked[place].ids) - len(wanted[place][1]) for place in part) - 1
            for place, rows in zip(part, self._read([asked[place] for place in part], first), strict=True):
                more = wanted[place][1]
                end = len(asked[place].ids) - 1 - first
                scored[place] = likelihood(rows[end - len(more) : end], torch.tensor(more, dtype=torch.long))
        for place, (index, _) in wanted.items():
            found[index].append(scored[place])
        return found

    def _read(self, seen: Sequence[Seen], first: int = 0) -> Tensor:
        """(B, T - first, V) logits; the shorter rows are padded on the right, which no token before looks at."""
        with self.places_fit(), at_rest(self.model):
            return logits_from(self.model, self.on_device(together(seen, left=False)), first)

    @contextmanager
    def places_fit(self) -> Iterator[None]:
        """What models say of a processor that leaves another number of places for a picture than there are features."""
        try:
            yield
        except ValueError as error:
            if "do not match" not in str(error):
                raise
            raise ModelError(
                f"the processor of {self.folder}", str(error).splitlines()[0], "copy the model's own processor files"
            ) from error

    def _shared(self, asked: Mapping[int, Seen], more: int, padded: bool = True) -> Iterator[list[int]]:
        return shared(asked, more, padded, alone=not self.proved or reads_by_length(self.model))

    def on_device(self, call: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self._placed(value) if isinstance(value, Tensor) else value for name, value in call.items()}

    @torch.no_grad()
    def feed(
        self,
        items: Sequence[UnderstandingItem | GenerationItem | TextSample],
        at_time: Callable[[float], None] | None = None,
    ) -> None:
        """Pictures, question and answer through vision tower and language model; items of one length share a batch."""
        pictured = [item for item in items if isinstance(item, UnderstandingItem) and several(item.image)]
        theirs = {id(item) for item in pictured}
        super().feed([item for item in items if id(item) not in theirs])
        asked: dict[int, Seen] = {}
        for index, item in enumerate(pictured):
            seen = self.sight.asked(several(item.image), item.question)
            asked[index] = self.sight.longer(seen, self.words.more_ids(item.answer))
        for part in self._shared(asked, 0, padded=False):
            call = self.on_device(together([asked[index] for index in part], left=False))
            # No logits: no statistic reads them.
            with self.places_fit(), at_rest(self.model):
                self.model.base_model(**call, use_cache=False)


def _split_by_pictures(images: Sequence[Any]) -> tuple[list[int], list[int]]:
    """Places with pictures, and those without."""
    shown = [index for index, entry in enumerate(images) if several(entry)]
    return shown, [index for index, entry in enumerate(images) if not several(entry)]
