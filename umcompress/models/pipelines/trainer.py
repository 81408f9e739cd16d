"""A pipeline in training: pictures in its own latents and noise, prompts on its own way, answers of its text encoder.

B pictures, R rows: one for each place of their latents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from umcompress.documents.base import Task
from umcompress.errors import ModelError, UsageError
from umcompress.models.hf.ask.picture_runner import PictureQuestionRunner
from umcompress.models.hf.train.text_trainer import TextTrainer, VisionLanguageTrainer
from umcompress.models.items import GenerationItem, ImageText, TextSample, TrainingItem, UnderstandingItem
from umcompress.models.pipelines import canvas as canvases
from umcompress.models.pipelines.canvas import Canvas, picture_rows
from umcompress.models.pipelines.painting import TRUE_SCALE
from umcompress.models.pipelines.prediction import predicted, rows_of_block, visited
from umcompress.models.pipelines.stacks import PAINTS, READS
from umcompress.models.trainer import TrainingBatch, TrainingForward

if TYPE_CHECKING:
    from umcompress.models.pipelines.runner import PipelineRunner

# Share of prompts that are left out, so that the branch without a prompt, which guidance needs, learns as well.
PROMPT_DROPOUT = 0.1
# Of a prompt without a picture: at most so many of the steps that the pipeline takes.
STEPS_A_PROMPT = 4


@dataclass(frozen=True)
class Noised:
    """Latents at a time, and what is to be predicted there; None where only the unpruned model knows."""

    prompt: str
    latents: Tensor
    time: Tensor
    target: Tensor | None


@dataclass(frozen=True)
class PipelineBatch:
    """What is denoised, and the batches of questions and texts, one each: none is padded."""

    noised: list[Noised] = field(default_factory=list)
    read: list[TrainingBatch] = field(default_factory=list)


class PipelineTrainer:
    """Generation: what the pipeline gives its scheduler, against the target of that scheduler.

    Understanding: answers and texts of a text encoder that is a whole language model.
    """

    def __init__(self, runner: PipelineRunner) -> None:
        self.runner, self.model, self.painter = runner, runner.model, runner.painter
        canvases.check_call(self.painter)
        self.predicts = canvases.what_it_predicts(self.painter.pipeline().scheduler)
        self.tasks: tuple[Task, ...] = runner.tasks
        self._rows: dict[str, tuple[int, ...]] = {}

    @cached_property
    def canvas(self) -> Canvas:
        return canvases.find_canvas(self.painter, self.runner.sampling)

    @cached_property
    def reader(self) -> TextTrainer | None:
        """Trains the text encoder on what it is asked."""
        reads = self.runner.reader
        if reads is None:
            return None
        return VisionLanguageTrainer(reads) if isinstance(reads, PictureQuestionRunner) else TextTrainer(reads)

    @property
    def names(self) -> tuple[str, str]:
        """Of the loss and of what is distilled."""
        return ("flow", "velocity") if self.predicts == "flow" else ("denoising", "prediction")

    # -- what can be trained ---------------------------------------------------------------------------------------

    def check(self, items: Sequence[TrainingItem]) -> None:
        read = [item for item in items if isinstance(item, UnderstandingItem | TextSample)]
        if read and self.reader is None:
            raise ModelError(
                f"train a pipeline of the class {self.model.index.kind}", "its text encoder continues no text",
                "give it pictures with prompts, or prompts",
            )
        if read and self.reader is not None:
            self.reader.check(read)

    def blocked(self, name: str, items: Sequence[TrainingItem]) -> str:
        painted = any(isinstance(item, ImageText | GenerationItem) for item in items)
        part, _, inside = name.partition(".")
        if part.startswith("vae"):
            return "pictures go through the autoencoder before they are trained on"
        if part.startswith(PAINTS):
            return "" if painted else "no prompts are trained on"
        if part != READS or self.reader is None:
            return ""
        read = [item for item in items if isinstance(item, UnderstandingItem | TextSample)]
        unseen = "visual" in inside.split(".") or inside.startswith("lm_head")
        if not unseen:
            return ""
        return self.reader.blocked(inside, read) if read else "no questions are trained on, and no picture reads it"

    # -- batches ---------------------------------------------------------------------------------------------------

    def batch(self, items: Sequence[TrainingItem], draws: Sequence[np.random.Generator]) -> TrainingBatch:
        """Pictures are encoded together; prompts alone are denoised by this model, up to the steps that are drawn."""
        ready, read = list[Noised](), list[TrainingBatch]()
        latents = iter(self._latents([item.image for item in items if isinstance(item, ImageText)]))
        for item, draw in zip(items, draws, strict=True):
            if isinstance(item, ImageText):
                ready.append(self._drawn(item.prompt, next(latents), draw))
            elif isinstance(item, GenerationItem):
                ready += self._visited(item.prompt, draw)
            else:
                read.append(self._reading().batch([item], [draw]))
        return TrainingBatch(PipelineBatch(ready, read), self._counts(ready, read), self._block_rows(ready, read))

    def _reading(self) -> TextTrainer:
        if self.reader is None:
            raise UsageError("train understanding", "the text encoder continues no text", "leave the task out")
        return self.reader

    def _counts(self, ready: Sequence[Noised], read: Sequence[TrainingBatch]) -> dict[str, int]:
        loss, output = self.names
        rows = math.prod(self.canvas.shape) // self._width() if ready else 0
        found = {loss: rows * sum(one.target is not None for one in ready), output: rows * len(ready)}
        for name in ("cross_entropy", "logits"):
            found[name] = sum(batch.rows[name] for batch in read)
        return {name: count for name, count in found.items() if count}

    def _width(self) -> int:
        return self.canvas.shape[0] if len(self.canvas.shape) > 2 else self.canvas.shape[-1]

    def _block_rows(self, ready: Sequence[Noised], read: Sequence[TrainingBatch]) -> tuple[int, ...]:
        """Of the streams of a block that denoises; and of the text encoder, which also reads what is asked."""
        each = [self._rows_of(one) for one in ready]
        asked = sum(sum(batch.block_rows) for batch in read)
        if not each:
            return (*([0] * self._streams()), asked)
        *streams, words = (sum(rows) for rows in zip(*each, strict=True))
        return (*streams, words + asked)

    def _streams(self) -> int:
        """How many tensors a block that denoises returns."""
        shape = self.canvas.shape
        time, _ = self.canvas.at(0.5)
        return len(self._rows_of(Noised("", torch.zeros(1, *shape, dtype=self._dtype), time, None))) - 1

    def _rows_of(self, one: Noised) -> tuple[int, ...]:
        if one.prompt not in self._rows:
            stacks = self.model.stacks
            block = self.model.get_submodule(f"{stacks[PAINTS]}.0")
            reading = self.model.get_submodule(f"{stacks[READS]}.0") if READS in stacks else None
            self._rows[one.prompt] = rows_of_block(
                self.painter, one.prompt, one.latents, one.time, self.runner.sampling, block, reading
            )
        return self._rows[one.prompt]

    @property
    def _dtype(self) -> torch.dtype:
        found: torch.dtype = self.model.dtype
        return found

    @property
    def _without_prompt(self) -> str:
        """What a pipeline reads in its other branch."""
        return self.runner.sampling.negative_prompt if self.painter.guidance_name == TRUE_SCALE else ""

    def _drawn(self, prompt: str, latents: Tensor, draw: np.random.Generator) -> Noised:
        # The order of the draws is part of what a seed means.
        dropped = draw.random() < PROMPT_DROPOUT and not self.painter.takes_guidance
        time = 1 / (1 + math.exp(-float(draw.standard_normal())))
        noise = self._noise(draw)
        return self._noised(self._without_prompt if dropped else prompt, latents, noise, time)

    def _noised(self, prompt: str, latents: Tensor, noise: Tensor, time: float) -> Noised:
        at, amount = self.canvas.at(time)
        noise = noise.to(latents)
        states = self.canvas.noised(latents, noise, amount).to(self._dtype)
        return Noised(prompt, states, at, self.canvas.target(latents, noise, amount))

    def _noise(self, draw: np.random.Generator) -> Tensor:
        return torch.from_numpy(draw.standard_normal((1, *self.canvas.shape), dtype=np.float32))

    def _visited(self, prompt: str, draw: np.random.Generator) -> list[Noised]:
        dropped = draw.random() < PROMPT_DROPOUT and not self.painter.takes_guidance
        generator = torch.Generator().manual_seed(int(draw.integers(2**31)))
        count = len(self.canvas.times)
        steps = draw.choice(count, size=min(count, STEPS_A_PROMPT), replace=False).tolist()
        found = visited(self.painter, prompt, generator, self.runner.sampling, set(steps))
        asked = self._without_prompt if dropped else prompt
        return [Noised(asked, latents.to(self._dtype), time, None) for latents, time in found]

    @torch.no_grad()
    def _latents(self, pictures: Sequence[Any]) -> list[Tensor]:
        """(1, *shape) float32 each."""
        if not pictures:
            return []
        found = self.canvas.latents(canvases.encoded(self.model.vae, pictures, self.canvas))
        return [one[None] for one in found]

    # -- forward ---------------------------------------------------------------------------------------------------

    def forward(self, batch: TrainingBatch) -> TrainingForward:
        """The canvas is not looked for here, which calls the model: who watches it counts what is trained on."""
        losses, outputs = {}, {}
        data: PipelineBatch = batch.data
        if data.noised:
            loss, output = self.names
            predictions = [self._predicted(one) for one in data.noised]
            outputs[output] = torch.cat([picture_rows(one) for one in predictions])
            errors = [
                picture_rows((one - noised.target.to(one)) ** 2).mean(-1)
                for one, noised in zip(predictions, data.noised, strict=True) if noised.target is not None
            ]
            if errors:
                losses[loss] = torch.cat(errors)
        if data.read:
            done = [self._reading().forward(one) for one in data.read]
            losses["cross_entropy"] = torch.cat([one.losses["cross_entropy"] for one in done])
            outputs["logits"] = torch.cat([one.outputs["logits"] for one in done])
        return TrainingForward(losses, outputs)

    def _predicted(self, one: Noised) -> Tensor:
        """(1, *shape), of float32 at least."""
        device = self.runner.device
        found = predicted(self.painter, one.prompt, one.latents.to(device), one.time, self.runner.sampling)
        return found.float() if found.dtype.itemsize < 4 else found

    @torch.no_grad()
    def losses(
        self, items: Sequence[TrainingItem], draws: Sequence[np.random.Generator], times: Sequence[float]
    ) -> Tensor:
        """Error of the prediction for pictures, a column a time; cross-entropy of answers and texts."""
        painted = [item for item in items if isinstance(item, ImageText)]
        if not painted:
            return self._reading().losses(items, draws, times)
        latents, rows = self._latents([item.image for item in painted]), []
        for item, clean, draw in zip(painted, latents, draws, strict=True):
            noise = self._noise(draw)
            ready = [self._noised(item.prompt, clean, noise, time) for time in times]
            rows.append([self._error(one) for one in ready])
        return torch.tensor(rows, dtype=torch.float64)

    def _error(self, one: Noised) -> float:
        assert one.target is not None
        return float((self._predicted(one).double() - one.target.double()).square().mean())

