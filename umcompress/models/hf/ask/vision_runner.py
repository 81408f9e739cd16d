"""Models of transformers that answer questions about pictures: prepared by their own processors, seen by every task."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from umcompress.documents.base import Task
from umcompress.models.hf.ask.carried_state import carried_state
from umcompress.models.hf.ask.picture_runner import PictureQuestionRunner
from umcompress.models.hf.ask.questions import QuestionPreparer
from umcompress.models.hf.ask.rest import forget_earlier_calls
from umcompress.models.hf.ask.text_runner import NEW_TOKENS, batched_experts
from umcompress.models.hf.inputs import Inputs, generates_text, ids_without_special_tokens, picture, vision_module
from umcompress.models.hf.known_inputs import ANY_PICTURE_TOKEN_TYPES, PICTURE_TOKEN_TYPES
from umcompress.models.hf.load.run_on_shapes import OnShapes
from umcompress.models.hf.load.skeleton import is_shapes_only
from umcompress.models.runner import Work

# Kinds whose batches the tests hold equal to single questions, and whose pictures are known without a processor.
# Others are asked one question at a time; sizes and speed are those of text.
BATCHED_MODEL_TYPES = frozenset({
    "aya_vision", "gemma3", "glm4v", "idefics3", "internvl", "llava", "llava_next", "llava_onevision", "paligemma",
    "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "vipllava",
})  # fmt: skip
QUESTION_TOKENS = 6
# Rows and columns of patches in the picture that sizes and speed are measured with, where a tower takes any number.
COUNTED_PATCHES = 16
# Questions that an evaluation hands over at once.
TOGETHER = 32


def takes_pictures_and_text(model: PreTrainedModel) -> bool:
    """Whether pictures and text go in together and text comes out."""
    takes = inspect.signature(type(model).forward).parameters
    return generates_text(model) and "pixel_values" in takes and not model.config.is_encoder_decoder


class VisionLanguageRunner(PictureQuestionRunner):
    """Vision tower, connector, language model; sizes and speed are those of a picture where one is known."""

    def __init__(self, model: PreTrainedModel, folder: Path) -> None:
        super().__init__(model, folder)
        self.preparer = QuestionPreparer(model, folder)
        self.may_share_batch = str(model.config.model_type) in BATCHED_MODEL_TYPES and not type(model).is_custom_code()

    @property
    def batch_size(self) -> int:
        """Questions that are worth having at once."""
        return TOGETHER if self.may_share_batch else 1

    def question_ids(self, question: str) -> list[int]:
        """By the processor's template, which may want a list of parts where the tokenizer's takes a text."""
        if not self.preparer.has_chat_template:
            return super().question_ids(question)
        return self.preparer.prepare([], question).ids

    # -- counting --------------------------------------------------------------------------------------------

    @cached_property
    def measured_picture(self) -> Inputs | None:
        """The picture that sizes and speed are measured with, where one is known."""
        return picture(self.model, patches=COUNTED_PATCHES) if self.may_share_batch else None

    @torch.no_grad()
    def pass_tokens(self, task: Task) -> int:
        """A picture and a short question. What the tower's patches cost is spread over the tokens read."""
        if self.measured_picture is None:
            return super().pass_tokens(task)
        with ExitStack() as shapes:
            if is_shapes_only(self.model):
                shapes.enter_context(batched_experts(self.model))
                shapes.enter_context(OnShapes())
            return self._run_picture_question(self.measured_picture, QUESTION_TOKENS)[1]

    def _run_picture_question(self, pictures: Inputs, words: int) -> tuple[Any, int]:
        """A picture as the tower takes it and a question of no particular words: the output, and how many tokens."""
        if not is_shapes_only(self.model):
            pictures = {name: self._to_device(value) for name, value in pictures.items()}
        with _features_computed_once(vision_module(self.model), pictures) as rows:
            places = torch.full((1, rows), int(self.model.config.image_token_id))
            ids = torch.cat([places, ids_without_special_tokens(self.model, 1, words)], dim=1)
            kinds = PICTURE_TOKEN_TYPES.get(self.model.config.model_type, ANY_PICTURE_TOKEN_TYPES)
            kinds &= inspect.signature(type(self.model).forward).parameters.keys()
            call = {"input_ids": ids} | dict.fromkeys(kinds, (ids == places[0, 0]).long())
            if not is_shapes_only(self.model):
                call = self.on_device(call)
            out = self.model(**call, **pictures, use_cache=True, logits_to_keep=1)
        return out, ids.shape[1]

    @torch.no_grad()
    def workload(self, task: Task) -> Work:
        """Read a picture and a question, decode eight tokens."""
        if self.measured_picture is None:
            return super().workload(task)
        forget_earlier_calls(self.model)
        started = time.perf_counter()
        out, _ = self._run_picture_question(self.measured_picture, QUESTION_TOKENS)
        self._synchronize()
        first = time.perf_counter()
        token = ids_without_special_tokens(self.model, 1, 1).to(self.device)
        for _ in range(NEW_TOKENS):
            out = self.model(input_ids=token, **carried_state(self.model, out), use_cache=True)
        self._synchronize()
        ended = time.perf_counter()
        forget_earlier_calls(self.model)
        measures = {"first_token_seconds": first - started, "tokens_per_second": NEW_TOKENS / (ended - first)}
        return Work(ended - started, measures)

    @torch.no_grad()
    def probe(self) -> dict[str, Tensor]:
        """Two texts; a ramp through the vision tower; a question about that ramp."""
        found = super().probe()
        ramp = picture(self.model) if self.may_share_batch else None
        if ramp is not None:
            found["question.logits"] = self._run_picture_question(ramp, QUESTION_TOKENS)[0].logits
        return found


@contextmanager
def _features_computed_once(part: Any, pictures: Inputs) -> Iterator[int]:
    """How many rows of the language model a picture has; the forward inside takes what was seen to know it."""
    given = inspect.signature(part.get_image_features).parameters
    features = part.get_image_features(**{name: value for name, value in pictures.items() if name in given})
    rows = features.pooler_output if hasattr(features, "pooler_output") else features
    rows = rows if isinstance(rows, (list, tuple)) else [rows]
    part.get_image_features = lambda *_, **__: features
    try:
        yield sum(one.shape[:-1].numel() for one in rows)
    finally:
        del part.get_image_features
