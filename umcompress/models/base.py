"""What a model family brings: loading, components, running each task.  Each has a folder under `models`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from umcompress.checkpoint.fill import WeightFiles
from umcompress.checkpoint.writer import Source
from umcompress.documents import Component, Task
from umcompress.edits import Plan
from umcompress.errors import ModelError, UsageError
from umcompress.models.plain import Plain

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class UnderstandingItem:
    """Calibration or training data: a picture (h, w, 3), a question, the answer that is fed with it."""

    image: Any
    question: str
    answer: str


@dataclass(frozen=True)
class GenerationItem:
    """Calibration data: a prompt; the whole sampling run is fed, every step and every guidance branch."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class ImageText:
    """Training data for generation: a picture (h, w, 3) and the prompt that asks for it."""

    image: Any
    prompt: str


@dataclass(frozen=True)
class TextSample:
    """Training data for a plain language model."""

    text: str


TrainingItem: TypeAlias = ImageText | UnderstandingItem | TextSample


@dataclass(frozen=True)
class TrainingBatch:
    """Items made ready for `Trainer.forward`, all random numbers drawn.

    rows: how many rows each loss and each distilled output has in this batch.
    block_rows: how many rows each tensor has that a block of the main stack returns, all but its last dimension
    flattened.
    kept: (rows,) of those which are no padding, over all calls of a block in their order; None: all.  `block_rows`
    counts no padding.
    """

    data: Any
    rows: Mapping[str, int]
    block_rows: tuple[int, ...]
    kept: Tensor | None = None


@dataclass(frozen=True)
class TrainingForward:
    """`losses`: the task's own, one number a row, (rows,).  `outputs`: what is distilled, (rows, width).

    Named alike in every family: losses `flow`, `cross_entropy` and, where pictures are tokens, `codes`; outputs
    `velocity`, `logits` and `code_logits`.
    """

    losses: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


class Trainer(Protocol):
    """Runs one model forward for training.  Teacher and student, two models of a family, share batches."""

    @property
    def tasks(self) -> tuple[Task, ...]: ...

    def batch(self, items: Sequence[TrainingItem], draws: Sequence[np.random.Generator]) -> TrainingBatch:
        """`draws[i]` gives all random numbers of item i, so that they do not depend on what shares its batch."""

    def check(self, items: Sequence[TrainingItem]) -> None:
        """UsageError for an item that the model cannot be trained on.  Shapes will do: no weight is read."""

    def blocked(self, name: str, items: Sequence[TrainingItem]) -> str:
        """Why the parameter `name` cannot learn from such items; "" where nothing is known to be in the way."""

    def forward(self, batch: TrainingBatch) -> TrainingForward:
        """One forward with gradients, in the model's own modes; block outputs are taken by hooks."""


@dataclass(frozen=True)
class Work:
    """One timed workload: its seconds in all, and what was timed in it."""

    seconds: float
    measures: dict[str, float]


@dataclass(frozen=True)
class Likelihood:
    """Log-likelihood of a text in nats, and whether each of its tokens is the likeliest one in its place."""

    nats: float
    greedy: bool


def likelihood(logits: Tensor, ids: Tensor) -> Likelihood:
    """Logits (T, V), each of the place before the token ids (T,)."""
    ids = ids.to(logits.device)
    chosen = logits.float().log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    return Likelihood(float(chosen.double().sum()), bool((logits.argmax(-1) == ids).all()))


class Runner(Protocol):
    """Runs the tasks of one model."""

    @property
    def tasks(self) -> tuple[Task, ...]: ...

    def answer(
        self, images: Sequence[Any], questions: Sequence[str], max_new_tokens: int = 16
    ) -> list[str]:
        """A greedily decoded answer for each picture and question; an entry of `images` may be a list of them."""

    def score(
        self, images: Sequence[Any], prompts: Sequence[str | None], continuations: Sequence[Sequence[str]]
    ) -> list[list[Likelihood]]:
        """How likely the model finds each of the continuations of each picture and prompt.

        An entry of `images` may be None or a list, a prompt None: then the continuation is the whole text.
        """

    def generate(
        self, prompts: Sequence[str], seed: int, places: Sequence[int] | None = None
    ) -> list[Picture]:
        """A picture (h, w, 3) for each prompt; noise follows from `seed` and the prompt's place alone.

        places: default 0, 1, 2 and so on.  A part of a list is painted like the whole if it keeps its places.
        """

    def feed(
        self, items: Sequence[UnderstandingItem | GenerationItem], at_time: Callable[[float], None] | None = None
    ) -> None:
        """Run the model over calibration items, for the statistics' sake.

        `at_time`, if given, hears the time (1: noise, 0: picture) of each denoising step before it runs.
        """

    def pass_tokens(self, task: Task) -> int:
        """Send one sample's tokens through the network once and return their number: for counting work."""

    def workload(self, task: Task) -> Work:
        """Run a fixed amount of the task's work and time it."""

    def probe(self) -> dict[str, Tensor]:
        """Outputs of every task on fixed inputs: what a reloaded model must reproduce to the last bit."""


@runtime_checkable
class Portions(Protocol):
    """A runner that can say what of some calibration items goes through the model together."""

    def portions(self, items: Sequence[Any]) -> list[list[Any]]:
        """All items, in parts that `feed` would each send through the model once."""


class Family(ABC):
    """A kind of model.  Stateless: everything about one model is read from its folder."""

    name: ClassVar[str]
    main_stack: ClassVar[str]
    # A general family takes the folders that no other family knows.
    general: ClassVar[bool] = False

    @abstractmethod
    def matches(self, folder: Path) -> bool:
        """Whether `folder` holds a model of this family."""

    @abstractmethod
    def skeleton(self, folder: Path) -> nn.Module:
        """The model of the folder's configuration, parameters on the meta device, buffers real."""

    @abstractmethod
    def fill(self, model: nn.Module, folder: Path, dtype: torch.dtype, device: str) -> None:
        """Fill a skeleton of any structure from the weight files of `folder`, strictly.

        ModelError lists all.
        """

    def cast(self, model: nn.Module, dtype: torch.dtype) -> nn.Module:
        """A skeleton with the dtypes that `fill` gives it."""
        return model.to(dtype)

    @abstractmethod
    def weight_files(self, model: nn.Module) -> WeightFiles:
        """Weight file -> name on disk -> name in the module, for every entry of the state dict."""

    @abstractmethod
    def stacks(self, model: nn.Module) -> dict[str, str]:
        """Stack name -> path of its ModuleList."""

    @abstractmethod
    def component_of(self, path: str) -> Component:
        """What the module or parameter at `path` is for."""

    def with_components(self, components: Mapping[str, Component]) -> Family:
        """The family with these parts in place of its own: globs of module paths, and what each is for."""
        raise UsageError(
            f"components of a {self.name} model", "this kind of model says itself what its parts are for",
            "leave `components` out of the recipe",
        )  # fmt: skip

    def trusting(self) -> Family:
        """The family that may run Python code which comes with a folder; most have no use for it."""
        return self

    @abstractmethod
    def runner(self, model: nn.Module, folder: Path) -> Runner:
        """Runs the tasks of `model`; tokenizer and settings come from `folder`."""

    def trainer(self, model: nn.Module, folder: Path) -> Trainer:
        """Trains `model`.  ModelError where the family cannot."""
        raise ModelError(
            f"train a model of the family {self.name}", "it brings no training forward",
            "leave training steps out, or give the family a `trainer`",
        )  # fmt: skip

    def notes(self, folder: Path) -> Mapping[str, str]:
        """File -> content: what `skeleton` reads from the weights of `folder` and not from its configuration.

        A compressed model's folder keeps them, as its own weights tell it no more.
        """
        return {}

    def plain(
        self, model: nn.Module, folder: Path, plans: Sequence[Plan], values: Mapping[str, Source] | None = None
    ) -> Plain | str:
        """A folder that holds `model` without the plans; else why there is none ("": nothing worth saying).

        `folder` and `plans`: where the model came from. values: the tensors of a skeleton.
        """
        return ""

    def load(self, folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> nn.Module:
        """The unmodified model of `folder`."""
        model = self.skeleton(folder)
        self.fill(model, folder, dtype, device)
        return model
