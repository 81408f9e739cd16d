"""Questions about pictures as a model's own processor prepares them, one at a time; those of one layout in batches.

T tokens of a question, P pictures (or rows of patches).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from umcompress.errors import UsageError
from umcompress.models.hf.ask.processors import has_processor, open_processor
from umcompress.models.hf.ask.text_runner import BATCH_TOKENS
from umcompress.models.hf.ask.tokenizer import ids_after_question
from umcompress.models.hf.load.own_code import is_trusted
from umcompress.models.hf.load.skeleton import CONFIG_ERRORS
from umcompress.models.pictures import to_image

# Outputs of a processor that are not passed on: made here instead, or training targets.
_NOT_FORWARDED = ("input_ids", "attention_mask", "labels")


def picture_list(entry: Any) -> list[Any]:
    """The pictures of one question as a list: an entry may be None, a picture, or several."""
    if entry is None:
        return []
    return list(entry) if isinstance(entry, list | tuple) else [entry]


@dataclass(frozen=True)
class PreparedQuestion:
    """A question with its pictures. per_token: (1, T, ...), an entry a token. pictures: (P, ...)."""

    ids: list[int]
    per_token: dict[str, Tensor]
    pictures: dict[str, Any]

    @property
    def layout(self) -> tuple[Any, ...]:
        """Shapes that must be equal in one batch: all but the numbers of tokens and of pictures."""
        pictures = tuple((name, _shape_from(value, 1)) for name, value in sorted(self.pictures.items()))
        return pictures, tuple((name, _shape_from(value, 2)) for name, value in sorted(self.per_token.items()))


def _shape_from(value: Any, start: int) -> Any:
    return tuple(value.shape[start:]) if isinstance(value, Tensor) else type(value).__name__


class QuestionPreparer:
    """Turns questions about pictures into inputs of one model. Opens the processor when it is first needed."""

    def __init__(self, model: PreTrainedModel, folder: Path) -> None:
        self.model: Any = model
        self.folder = folder

    @cached_property
    def processor(self) -> Any:
        return self._open_processor()

    def _open_processor(self) -> Any:
        return open_processor(self.folder, is_trusted(self.model))

    @cached_property
    def has_chat_template(self) -> bool:
        """Whether the processor has a chat template."""
        return has_processor(self.folder) and bool(getattr(self.processor, "chat_template", None))

    def prepare(self, images: Sequence[Any], question: str) -> PreparedQuestion:
        """Inputs of one question: pictures first, or where its text has a picture token for each of them."""
        shown = [to_image(image) for image in images]
        text = self.rendered(question, len(shown))
        made = self.processed(text, **({"images": [shown]} if shown else {}))
        ids = made["input_ids"][0].tolist()
        rest = {name: value for name, value in made.items() if name not in _NOT_FORWARDED}
        of_pictures = set(self.processor.image_processor.model_input_names)
        per_token = {
            name: value for name, value in rest.items()
            if name not in of_pictures and isinstance(value, Tensor) and value.shape[:2] == (1, len(ids))
        }  # fmt: skip
        return PreparedQuestion(ids, per_token, {name: value for name, value in rest.items() if name not in per_token})

    def processed(self, text: str, **options: Any) -> Any:
        """The processor's output for one text. UsageError for pictures that it does not take."""
        begin = self.processor.tokenizer.bos_token
        if begin and text.startswith(begin):
            options["add_special_tokens"] = False
        try:
            return self.processor(text=[text], return_tensors="pt", **options)
        except CONFIG_ERRORS as error:
            shown = sum(map(len, options.get("images", ())))
            lines = str(error).splitlines() or [type(error).__name__]
            raise UsageError(
                f"prepare {shown or 'no'} picture{'' if shown == 1 else 's'} with the text {text[-80:]!r}",
                f"{type(self.processor).__name__}: {lines[0][:200]}", "ask with pictures as this model takes them",
            ) from error

    def rendered(self, question: str, images: int) -> str:
        """The prompt as text, by the processor's chat template where there is one."""
        chat = self._chat(question, images)
        if self.has_chat_template:
            return str(self.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
        return "".join(part.get("text", self._picture_token) for part in chat[0]["content"])

    @property
    def _picture_token(self) -> str:
        """The processor's placeholder token for a picture."""
        token = getattr(self.processor, "image_token", None)
        return "" if token is None else str(getattr(token, "content", token))

    def _chat(self, question: str, images: int) -> list[dict[str, Any]]:
        """The chat: pictures first, unless the question holds a picture token for each."""
        in_text = images > 0 and bool(self._picture_token) and question.count(self._picture_token) == images
        content = [{"type": "image"}] * (0 if in_text else images) + [{"type": "text", "text": question}]
        return [{"role": "user", "content": content}]

    def answer_ids(self, images: int, question: str, answer: str) -> list[int]:
        """Token ids of the answer to a question in training, to the end of its turn in the chat."""
        tokenizer = self.processor.tokenizer
        if not self.has_chat_template:
            return ids_after_question(tokenizer, answer)
        said = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        whole = self.processor.apply_chat_template([*self._chat(question, images), said], tokenize=False)
        return ids_after_question(tokenizer, answer, str(whole), self.rendered(question, images))

    def with_answer(self, prepared: PreparedQuestion, answer: Sequence[int]) -> PreparedQuestion:
        """The question with answer tokens; their token types are those that `generate()` gives to decoded tokens."""
        per_token: dict[str, Any] = dict(prepared.per_token)
        nothing = ModelOutput()  # type: ignore[no-untyped-call]
        for _ in answer:
            per_token = self.model._update_model_kwargs_for_generation(nothing, per_token)
        kept = {name: per_token[name] for name in prepared.per_token}
        return replace(prepared, ids=[*prepared.ids, *answer], per_token=kept)


def padded_batch(questions: Sequence[PreparedQuestion], left: bool) -> dict[str, Any]:
    """Model inputs of a batch: token rows padded to one length (left or right), pictures concatenated in order."""
    longest = max(len(one.ids) for one in questions)
    ids = [torch.tensor([one.ids]) for one in questions]
    call: dict[str, Any] = {"input_ids": _padded(ids, longest, left)}
    call["attention_mask"] = _padded([torch.ones_like(row) for row in ids], longest, left)
    for name in questions[0].per_token:
        call[name] = _padded([one.per_token[name] for one in questions], longest, left)
    for name, first in questions[0].pictures.items():
        call[name] = torch.cat([one.pictures[name] for one in questions]) if isinstance(first, Tensor) else first
    return call


def _padded(rows: list[Tensor], longest: int, left: bool) -> Tensor:
    """(1, T, ...) each -> (B, longest, ...), zeros where there is nothing."""
    whole = rows[0].new_zeros(len(rows), longest, *rows[0].shape[2:])
    for place, row in enumerate(rows):
        start = longest - row.shape[1] if left else 0
        whole[place, start : start + row.shape[1]] = row[0]
    return whole


def batchable_groups(prepared: Mapping[int, PreparedQuestion], padded: bool, pictures_alone: bool) -> list[list[int]]:
    """Indices of questions that may share a batch, shortest first.

    padded: else all of a batch have one length. pictures_alone: each question with pictures is a batch of its own.
    """
    groups: dict[Any, list[int]] = {}
    for index, question in sorted(prepared.items(), key=lambda item: len(item[1].ids)):
        # What is no tensor cannot be concatenated with that of other questions.
        mixed = any(not isinstance(value, Tensor) for value in question.pictures.values())
        shared = (question.layout, None if padded else len(question.ids))
        alone = mixed or (pictures_alone and question.pictures)
        groups.setdefault(index if alone else shared, []).append(index)
    return list(groups.values())


def batches(
    prepared: Mapping[int, PreparedQuestion], new_tokens: int, padded: bool, pictures_alone: bool
) -> Iterator[list[int]]:
    """`batchable_groups` cut into batches of about `BATCH_TOKENS`; new_tokens: what will be decoded for each."""
    for group in batchable_groups(prepared, padded, pictures_alone):
        batch: list[int] = []
        for index in group:
            if batch and (len(prepared[index].ids) + new_tokens) * (len(batch) + 1) > BATCH_TOKENS:
                yield batch
                batch = []
            batch.append(index)
        yield batch
