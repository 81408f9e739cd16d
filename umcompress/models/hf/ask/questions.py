"""Questions about pictures as a model's own processor prepares them, one at a time; those of one layout in batches.

T tokens of a question, P pictures (or rows of patches).
"""

from __future__ import annotations

import inspect
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
from umcompress.models.hf.ask.tokenizer import answered
from umcompress.models.hf.load.own_code import trusted
from umcompress.models.hf.load.skeleton import WRONG
from umcompress.models.pictures import to_image

# Of a processor's output: what this module makes itself, and targets of training.
_APART = ("input_ids", "attention_mask", "labels")


def several(entry: Any) -> list[Any]:
    """The pictures of one question."""
    if entry is None:
        return []
    return list(entry) if isinstance(entry, list | tuple) else [entry]


@dataclass(frozen=True)
class Seen:
    """A question with its pictures. each: (1, T, ...), an entry a token. pictures: (P, ...)."""

    ids: list[int]
    each: dict[str, Tensor]
    pictures: dict[str, Any]

    @property
    def layout(self) -> tuple[Any, ...]:
        """What has to be equal in questions that share a batch: all but the numbers of tokens and of pictures."""
        seen = tuple((name, _inner(value, 1)) for name, value in sorted(self.pictures.items()))
        return seen, tuple((name, _inner(value, 2)) for name, value in sorted(self.each.items()))


def _inner(value: Any, start: int) -> Any:
    return tuple(value.shape[start:]) if isinstance(value, Tensor) else type(value).__name__


class Sight:
    """Prepares questions for one model. The processor is opened when the first comes."""

    def __init__(self, model: PreTrainedModel, folder: Path) -> None:
        self.model: Any = model
        self.folder = folder

    @cached_property
    def processor(self) -> Any:
        return self._opened()

    def _opened(self) -> Any:
        return open_processor(self.folder, trusted(self.model))

    @cached_property
    def chats(self) -> bool:
        """Whether the processor knows how a question is put."""
        return has_processor(self.folder) and bool(getattr(self.processor, "chat_template", None))

    def asked(self, images: Sequence[Any], question: str) -> Seen:
        """Pictures, then the question; where its text has the processor's token for each picture, they are there."""
        shown = [to_image(image) for image in images]
        text = self.rendered(question, len(shown))
        made = self.processed(text, **({"images": [shown]} if shown else {}))
        ids = made["input_ids"][0].tolist()
        rest = {name: value for name, value in made.items() if name not in _APART}
        of_pictures = set(self.processor.image_processor.model_input_names)
        each = {
            name: value for name, value in rest.items()
            if name not in of_pictures and isinstance(value, Tensor) and value.shape[:2] == (1, len(ids))
        }  # fmt: skip
        return Seen(ids, each, {name: value for name, value in rest.items() if name not in each})

    def processed(self, text: str, **options: Any) -> Any:
        """What the processor makes of one text. Raises UsageError for pictures that it does not take."""
        begin = self.processor.tokenizer.bos_token
        if begin and text.startswith(begin):
            options["add_special_tokens"] = False
        try:
            return self.processor(text=[text], return_tensors="pt", **options)
        except WRONG as error:
            shown = sum(map(len, options.get("images", ())))
            lines = str(error).splitlines() or [type(error).__name__]
            raise UsageError(
                f"prepare {shown or 'no'} picture{'' if shown == 1 else 's'} with the text {text[-80:]!r}",
                f"{type(self.processor).__name__}: {lines[0][:200]}", "ask with pictures as this model takes them",
            ) from error

    def rendered(self, question: str, images: int) -> str:
        """By the processor's chat template where there is one."""
        chat = self._chat(question, images)
        if self.chats:
            return str(self.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
        return "".join(part.get("text", self._place) for part in chat[0]["content"])

    @property
    def _place(self) -> str:
        """The processor's word for a picture."""
        token = getattr(self.processor, "image_token", None)
        return "" if token is None else str(getattr(token, "content", token))

    def _chat(self, question: str, images: int) -> list[dict[str, Any]]:
        """Pictures first, but where the question has a place for each."""
        there = images > 0 and bool(self._place) and question.count(self._place) == images
        content = [{"type": "image"}] * (0 if there else images) + [{"type": "text", "text": question}]
        return [{"role": "user", "content": content}]

    def turn(self, images: int, question: str, answer: str) -> list[int]:
        """What follows such a question where the model is taught: the answer, to the end of its turn."""
        tokenizer = self.processor.tokenizer
        if not self.chats:
            return answered(tokenizer, answer)
        said = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        whole = self.processor.apply_chat_template([*self._chat(question, images), said], tokenize=False)
        return answered(tokenizer, answer, str(whole), self.rendered(question, images))

    def longer(self, seen: Seen, more: Sequence[int]) -> Seen:
        """With tokens that answer: marked as the model's own generation marks what it has decoded."""
        each: dict[str, Any] = dict(seen.each)
        nothing = ModelOutput()  # type: ignore[no-untyped-call]
        for _ in more:
            each = self.model._update_model_kwargs_for_generation(nothing, each)
        return replace(seen, ids=[*seen.ids, *more], each={name: each[name] for name in seen.each})


def together(seen: Sequence[Seen], left: bool) -> dict[str, Any]:
    """A call: tokens padded on one side, pictures one after the other, as their places in the text."""
    longest = max(len(one.ids) for one in seen)
    call: dict[str, Any] = {"input_ids": _padded([torch.tensor([one.ids]) for one in seen], longest, left)}
    call["attention_mask"] = _padded([torch.ones(1, len(one.ids), dtype=torch.long) for one in seen], longest, left)
    for name in seen[0].each:
        call[name] = _padded([one.each[name] for one in seen], longest, left)
    for name, first in seen[0].pictures.items():
        call[name] = torch.cat([one.pictures[name] for one in seen]) if isinstance(first, Tensor) else first
    return call


def logits_from(model: Any, call: Mapping[str, Any], first: int) -> Tensor:
    """(B, T - first, V) logits of the places from `first` on; the others are not computed where the model can."""
    keep = call["input_ids"].shape[1] - first
    keeps = first > 0 and "logits_to_keep" in inspect.signature(type(model).forward).parameters
    logits: Tensor = model(**call, **({"logits_to_keep": keep} if keeps else {}), use_cache=False).logits
    return logits[:, -keep:]


def _padded(rows: list[Tensor], longest: int, left: bool) -> Tensor:
    """(1, T, ...) each -> (B, longest, ...), zeros where there is nothing."""
    whole = rows[0].new_zeros(len(rows), longest, *rows[0].shape[2:])
    for place, row in enumerate(rows):
        start = longest - row.shape[1] if left else 0
        whole[place, start : start + row.shape[1]] = row[0]
    return whole


def alike(asked: Mapping[int, Seen], padded: bool, alone: bool) -> list[list[int]]:
    """Keys of what may be read at once, the shortest first; unpadded: of one length. alone: pictures one at a time."""
    groups: dict[Any, list[int]] = {}
    for index, seen in sorted(asked.items(), key=lambda item: len(item[1].ids)):
        single = (alone and seen.pictures) or any(not isinstance(value, Tensor) for value in seen.pictures.values())
        groups.setdefault(index if single else (seen.layout, None if padded else len(seen.ids)), []).append(index)
    return list(groups.values())


def shared(asked: Mapping[int, Seen], more: int, padded: bool, alone: bool) -> Iterator[list[int]]:
    """Keys of what is read at once, about so many tokens; unpadded: of one length. alone: pictures one at a time."""
    for group in alike(asked, padded, alone):
        batch: list[int] = []
        for index in group:
            if batch and (len(asked[index].ids) + more) * (len(batch) + 1) > BATCH_TOKENS:
                yield batch
                batch = []
            batch.append(index)
        yield batch
