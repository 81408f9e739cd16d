"""The options that all training passes have in common.  Importing this loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from umcompress.documents.base import Document, Task


class LossWeights(Document):
    """Weights of the losses in the sum that is minimised.  0 leaves a loss out."""

    task: NonNegativeFloat = Field(
        default=0.1,
        description="the model's own: flow matching on latents, cross-entropy on answers; noisier than a teacher",
    )
    distill_output: NonNegativeFloat = Field(
        default=1.0,
        description="to the unpruned model's velocity or noise (squared error) and logits (divergence)",
    )
    distill_blocks: NonNegativeFloat = Field(
        default=1.0,
        description="to what the unpruned model's blocks put out: squared error over variance, mean of the blocks",
    )
    balance: NonNegativeFloat = Field(
        default=0.001, description="experts times the sum of each one's load times its mean probability"
    )

    @model_validator(mode="after")
    def _something(self) -> LossWeights:
        if not (self.task or self.distill_output or self.distill_blocks):
            raise ValueError("at least one of task, distill_output and distill_blocks must be above 0")
        return self

    @property
    def distills(self) -> bool:
        return self.distill_output > 0 or self.distill_blocks > 0


class TrainingOptions(Document):
    """How a training runs.  The result does not depend on the number of processes."""

    steps: PositiveInt = Field(default=300, description="how many times the weights are changed")
    batch_size: PositiveInt = Field(
        default=32, description="items a step, those of all processes and accumulated parts together"
    )
    gradient_accumulation: PositiveInt = Field(
        default=1, description="parts that each process cuts its items of a step into, to save memory"
    )
    learning_rate: PositiveFloat | None = Field(
        default=None, description="at its highest; default: 0.2 over the inputs of the widest layer that learns"
    )
    warm_up: NonNegativeInt = Field(default=10, description="steps in which the rate rises")
    schedule: Literal["cosine", "constant"] = Field(default="cosine", description="the rate after the warm-up")
    clip: PositiveFloat | None = Field(default=1.0, description="longest gradient; null: any")
    ema: float = Field(
        default=0.98, ge=0, lt=1, description="decay of the running mean of the weights that is kept; 0: the last ones"
    )
    losses: LossWeights = Field(default=LossWeights(), description="weights of the losses")
    bf16: bool | None = Field(
        default=None,
        description="compute in bfloat16, what learns and its moments stay float32; default: on a GPU",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="compute each block again going back instead of keeping its activations"
    )
    checkpoint_every: PositiveInt = Field(
        default=50, description="steps between the checkpoints that a killed run resumes from"
    )
    tasks: dict[Task, PositiveFloat] | None = Field(
        default=None,
        description="tasks to train on, with their shares of a batch; default: those that reach what learns, alike",
    )
    source: str | None = Field(
        default=None, description="the evaluation that provides training items; default: the recipe's first"
    )
    data: Path | None = Field(
        default=None,
        description="a file of training items instead: JSON lines with `text`, with `image`, `question` and `answer`, "
        "with `image` and `prompt`, or of pipelines prompts alone",
    )
    seed: NonNegativeInt = Field(default=0, description="draws items, noise and times")

    @model_validator(mode="after")
    def _divides(self) -> TrainingOptions:
        if self.batch_size % self.gradient_accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of gradient_accumulation {self.gradient_accumulation}"
            )
        if self.tasks is not None and not self.tasks:
            raise ValueError("tasks names at least one, or is left out")
        if self.source is not None and self.data is not None:
            raise ValueError("`source` and `data` are both given; leave one out")
        return self


class TrainingSummary(Document):
    """The result of a training: means of each loss over the first and over the last tenth of its steps."""

    steps: PositiveInt
    parameters: PositiveInt
    seconds_per_step: NonNegativeFloat
    first: dict[str, float]
    last: dict[str, float]
