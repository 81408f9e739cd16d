"""Run a model of transformers: text answers, calibration text, fixed inputs for counting and for checks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from umcompress.documents.base import Task
from umcompress.errors import CheckError, UncountedError, UsageError
from umcompress.models.hf.ask.carried_state import carried_state
from umcompress.models.hf.ask.greedy import greedily
from umcompress.models.hf.ask.likelihoods import keeps_keys_and_values, likelihoods
from umcompress.models.hf.ask.rest import at_rest, forget_earlier_calls, reads_by_length
from umcompress.models.hf.ask.tokenizer import FolderTokenizer, embeddings
from umcompress.models.hf.ask.towers import features, towers
from umcompress.models.hf.inputs import (
    explaining_missing_inputs,
    fixed_inputs,
    generates_text,
    ids_without_special_tokens,
    learned_positions,
    picture,
    positions,
    reads_text,
    text_config,
    text_inputs,
)
from umcompress.models.hf.load.own_code import is_trusted
from umcompress.models.hf.load.run_on_shapes import OnShapes
from umcompress.models.hf.load.skeleton import is_shapes_only
from umcompress.models.items import GenerationItem, TextSample, UnderstandingItem
from umcompress.models.runner import Likelihood, Runner, Work
from umcompress.progress import passed

PASS_TOKENS = 64
PROMPT_TOKENS = 128
NEW_TOKENS = 8
BATCH_TOKENS = 4096


class TransformersRunner(Runner):
    """One task, understanding: text in, text out. What shares a batch changes results only by rounding."""

    tasks: tuple[Task, ...] = ("understanding",)
    reads_pictures = False
    reads_texts = True

    def __init__(self, model: PreTrainedModel, folder: Path) -> None:
        self.model: Any = model
        self.folder = folder

    @cached_property
    def tokenizer(self) -> FolderTokenizer:
        """The tokenizer; sizes and workloads need none."""
        return FolderTokenizer(self.folder, is_trusted(self.model), embeddings(self.model))

    @cached_property
    def max_text_tokens(self) -> int | None:
        """The longest text in tokens, None where no table sets it: what is longer is cut, or refused."""
        return learned_positions(self.model)

    @property
    def generates_text(self) -> bool:
        """Whether the model continues text: what does not is measured, and never scored."""
        return generates_text(self.model)

    def at_rest(self) -> AbstractContextManager[None]:
        """Inside and afterwards, the model is as if nothing had run."""
        return at_rest(self.model)

    @cached_property
    def _keeps_keys_and_values(self) -> bool:
        return keeps_keys_and_values(self.model)

    # -- text ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def answer(self, images: Sequence[Any], questions: Sequence[str], max_new_tokens: int = 16) -> list[str]:
        """Greedy answers to questions without pictures (`images` holds None)."""
        self._require_text_generation("answer questions")
        _no_pictures(self.model, images)
        answers: list[str] = []
        rows = [self.question_ids(question) for question in questions]
        for part in _batches_by_tokens(rows, max_new_tokens, reads_by_length(self.model)):
            ids, mask = self.tokenizer.left_padded(part)
            with greedily(self.model, max_new_tokens) as settings:
                out = self.model.generate(
                    input_ids=ids.to(self.device), attention_mask=mask.to(self.device), generation_config=settings
                )
            answers += [self.tokenizer.text(row[ids.shape[1] :]).strip() for row in out]
        return answers

    def question_ids(self, question: str) -> list[int]:
        """A question without pictures, as the model was taught to be asked."""
        return self.tokenizer.question_ids(question)

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """(B, T) ids -> (B, T, V) in the model's dtype."""
        self._require_text_generation("score text")
        with at_rest(self.model):
            return self._require_finite(self.model(input_ids=ids.to(self.device)).logits)

    @torch.no_grad()
    def score(
        self, images: Sequence[Any], prompts: Sequence[str | None], continuations: Sequence[Sequence[str]]
    ) -> list[list[Likelihood]]:
        """As `Runner.score`, of plain text: no chat template is put around it."""
        self._require_text_generation("score continuations")
        _no_pictures(self.model, images)
        pairs = [
            self.tokenizer.prompt_and_continuation(prompt or "", text)
            for prompt, texts in zip(prompts, continuations, strict=True)
            for text in texts
        ]
        several = iter(likelihoods(self.model, pairs, self._require_finite, BATCH_TOKENS, self._keeps_keys_and_values))
        return [[next(several) for _ in texts] for texts in continuations]

    # -- calibration and counting ----------------------------------------------------------------------------

    @torch.no_grad()
    def feed(
        self,
        items: Sequence[UnderstandingItem | GenerationItem | TextSample],
        at_time: Callable[[float], None] | None = None,
    ) -> None:
        """Texts as they are; of a question and its answer, both. What is of one length shares a batch."""
        for portion in self._batches_of_one_length([(item, self._text_ids(item)) for item in items]):
            self._encode(torch.tensor([ids for _, ids in portion]))
            passed("samples", len(portion))

    def portions(self, items: Sequence[Any]) -> list[list[Any]]:
        """Texts that share a batch, anything else by itself."""
        texts = [item for item in items if _is_text(item)]
        alike = self._batches_of_one_length([(item, self._text_ids(item)) for item in texts])
        return [[item for item, _ in portion] for portion in alike] + [[i] for i in items if not _is_text(i)]

    def _batches_of_one_length(self, rows: list[tuple[Any, list[int]]]) -> list[list[tuple[Any, list[int]]]]:
        """Rows of one length together, about so many tokens at most."""
        found = []
        for length, alike in groupby(sorted(rows, key=lambda row: len(row[1])), key=lambda row: len(row[1])):
            batch = list(alike)
            each = max(1, BATCH_TOKENS // max(1, length))
            found += [batch[start : start + each] for start in range(0, len(batch), each)]
        return found

    def _text_ids(self, item: object) -> list[int]:
        if isinstance(item, TextSample):
            return self.tokenizer.ids(item.text)[: self.max_text_tokens]
        if isinstance(item, UnderstandingItem) and _is_text(item):
            return self.question_ids(item.question) + self.tokenizer.continuation_ids(item.answer)
        raise UsageError(
            f"calibrate {type(self.model).__name__}", f"an item of kind {type(item).__name__}",
            "name a source of plain text: calibration: {source: perplexity}",
        )  # fmt: skip

    def _encode(self, ids: Tensor) -> None:
        """All blocks; no logits, which no statistic reads and which would be the largest tensor of the run."""
        body = self.model.base_model if generates_text(self.model) else self.model
        with explaining_missing_inputs(self.model), at_rest(self.model):
            body(**text_inputs(self.model, ids.to(self.device)), use_cache=False)

    def pass_tokens(self, task: Task) -> int:
        """A text of fixed length, or for a model that reads only pictures, one picture.

        UncountedError as `pass_text`.
        """
        return self.pass_text()

    @torch.no_grad()
    def pass_text(self) -> int:
        """No picture where the model reads texts.

        UncountedError where a skeleton cannot be run: some mixtures look up which experts were chosen.
        """
        if not is_shapes_only(self.model):
            return self._forward_once()
        try:
            with batched_experts(self.model), OnShapes():
                return self._forward_once()
        except (NotImplementedError, RuntimeError) as error:
            found = (str(error).splitlines() or [type(error).__name__])[0]
            raise UncountedError(f"count the work of {type(self.model).__name__} without values", found) from error

    def _forward_once(self) -> int:
        pixels = picture(self.model, 0.0)
        tokens = self._tokens_that_fit(PASS_TOKENS) if reads_text(self.model) else 1
        call = fixed_inputs(self.model, torch.zeros(1, tokens, dtype=torch.long), pixels)
        with explaining_missing_inputs(self.model), at_rest(self.model):
            self.model(**{name: value.to(self.device) for name, value in call.items()})
        return tokens

    @torch.no_grad()
    def probe(self) -> dict[str, Tensor]:
        """Outputs on fixed inputs: two texts, one padded; a picture through the vision tower."""
        found: dict[str, Tensor] = {}
        pixels = picture(self.model)
        if pixels is not None:
            pixels = {name: self._to_device(value) for name, value in pixels.items()}
        if reads_text(self.model):
            ids = ids_without_special_tokens(self.model, 2, 12).to(self.device)
            mask = torch.ones_like(ids)
            mask[1, :3] = 0
            with explaining_missing_inputs(self.model), at_rest(self.model):
                out = self.model(attention_mask=mask, **fixed_inputs(self.model, ids, pixels))
            found |= _floating_tensors(out, "text")
        parts = (self.model, self.model.base_model)
        seeing = next((part for part in parts if hasattr(part, "get_image_features")), None)
        if pixels is not None and seeing is not None:
            found |= _floating_tensors(seeing.get_image_features(**pixels), "image")
        elif pixels is not None and not reads_text(self.model):
            call = fixed_inputs(self.model, torch.zeros(1, 1, dtype=torch.long, device=self.device), pixels)
            with explaining_missing_inputs(self.model):
                found |= _floating_tensors(self.model(**call), "image")
        elif type(self.model).is_custom_code():
            for path, tower in towers(self.model):
                found |= _floating_tensors(features(tower, self.folder, self._to_device), f"image.{path}")
        return found

    @torch.no_grad()
    def workload(self, task: Task) -> Work:
        """Read a prompt, then decode eight tokens; of a model that does not speak, one pass."""
        started = time.perf_counter()
        if not generates_text(self.model):
            tokens = self._forward_once()
            self._synchronize()
            seconds = time.perf_counter() - started
            return Work(seconds, {"tokens_per_second": tokens / seconds})
        ids = ids_without_special_tokens(self.model, 1, self._tokens_that_fit(PROMPT_TOKENS)).to(self.device)
        forget_earlier_calls(self.model)
        out = self.model(input_ids=ids, use_cache=True)
        self._synchronize()
        first = time.perf_counter()
        for _ in range(NEW_TOKENS):
            state, token = carried_state(self.model, out), ids[:, :1]
            # A model that hands nothing on reads the whole text again, as generate() does with it.
            ids = torch.cat([ids, token], dim=1)
            out = self.model(input_ids=token if state else ids, **state, use_cache=True)
        self._synchronize()
        ended = time.perf_counter()
        forget_earlier_calls(self.model)
        measures = {"first_token_seconds": first - started, "tokens_per_second": NEW_TOKENS / (ended - first)}
        return Work(ended - started, measures)

    def _tokens_that_fit(self, tokens: int) -> int:
        """So many tokens, or what the model has positions for, with room for those to decode."""
        most = positions(text_config(self.model))
        return min(tokens, most - NEW_TOKENS) if most is not None and most > NEW_TOKENS else tokens

    def _to_device(self, value: Tensor) -> Tensor:
        return value.to(self.device, self.model.dtype if value.is_floating_point() else value.dtype)

    def _require_finite(self, logits: Tensor) -> Tensor:
        """The logits (..., V); CheckError where some are NaN: a score of these says nothing."""
        # The largest of a token's: it is NaN if any is, and forbidden tokens may well be minus infinity.
        if not bool((broken := ~logits.amax(-1).isfinite()).any()):
            return logits
        raise CheckError(
            f"score text with {type(self.model).__name__}",
            f"values that are not finite (NaN or infinite) at {int(broken.sum())} of {broken.numel()} tokens",
            "look for NaN or infinite values in its weights; in bfloat16, compute in float32 (dtype: float32)",
        )

    def _require_text_generation(self, what: str) -> None:
        if not generates_text(self.model):
            raise UsageError(what, f"{type(self.model).__name__} does not generate text", "use another model")

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _no_pictures(model: PreTrainedModel, images: Sequence[Any]) -> None:
    if not all(image is None or (isinstance(image, list | tuple) and not image) for image in images):
        raise UsageError(
            "ask about pictures", f"{type(model).__name__} is run on text here",
            "use an evaluation that asks without pictures, such as perplexity",
        )  # fmt: skip


def _is_text(item: object) -> bool:
    """Whether an item has no picture."""
    if isinstance(item, UnderstandingItem):
        return item.image is None or (isinstance(item.image, list | tuple) and not item.image)
    return isinstance(item, TextSample)


def _batches_by_tokens(rows: list[list[int]], more: int, alone: bool) -> Iterator[list[list[int]]]:
    """Rows in their order, in batches of about so many tokens; or each alone."""
    batch: list[list[int]] = []
    for row in rows:
        longest = max(map(len, [*batch, row])) + more
        if batch and (alone or longest * (len(batch) + 1) > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _floating_tensors(output: Any, prefix: str) -> dict[str, Tensor]:
    """The floating tensors of an output, by name."""
    named = output.items() if hasattr(output, "items") else {"features": output}.items()
    found: dict[str, Tensor] = {}
    for name, value in named:
        if isinstance(value, Tensor) and value.is_floating_point():
            found[f"{prefix}.{name}"] = value
        elif isinstance(value, (list, tuple)):
            parts = [part for part in value if isinstance(part, Tensor) and part.is_floating_point()]
            found |= {f"{prefix}.{name}.{index}": part for index, part in enumerate(parts)}
    return found


@contextmanager
def batched_experts(model: PreTrainedModel) -> Iterator[None]:
    """Experts as batched products: the other ways to run them read values, and a skeleton has none."""
    before = getattr(model.config, "_experts_implementation", None)
    model.set_experts_implementation("batched_mm")
    try:
        yield
    finally:
        if before is not None:
            model.set_experts_implementation(before)
