"""What the engine asks of a model that runs: answer, generate, likelihoods, calibration inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from umcompress.documents.base import Task
from umcompress.errors import UncountedError, UsageError
from umcompress.models.items import GenerationItem, Picture, UnderstandingItem

if TYPE_CHECKING:
    from umcompress.models.family import Family
    from umcompress.models.trainer import Trainer


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


class Runner(ABC):
    """Runs the tasks of one model.

    A family's runner says what it can do with the properties here, and does it with the methods.  The engine and the
    evaluations ask nothing else of it.
    """

    model: Any
    folder: Path
    tasks: tuple[Task, ...]

    @property
    def calibrates(self) -> tuple[Task, ...]:
        """Tasks whose items `feed` takes; more than `tasks` where what is generated cannot be decoded."""
        return self.tasks

    @property
    def reads_pictures(self) -> bool:
        """Whether questions and calibration items may have pictures."""
        return True

    @property
    def reads_texts(self) -> bool:
        """Whether plain text passes through the model: `tokenizer`, `logits` and `TextSample`s in `feed`."""
        return False

    @property
    def generates_text(self) -> bool:
        """Whether the model continues text.  What does not is measured, and never scored."""
        return True

    @property
    def encodes_pictures(self) -> bool:
        """Whether `latents` says where pictures lie in the space that the model generates in."""
        return False

    @property
    def batch_size(self) -> int | None:
        """Items that are worth handing over at once; None where it makes no difference."""
        return None

    @property
    def max_text_tokens(self) -> int | None:
        """The longest text in tokens; None where no table of positions sets it."""
        return None

    @property
    def sampling_settings(self) -> str:
        """What pictures are sampled with, as text: pictures made with other settings are not compared."""
        return ""

    @property
    def device(self) -> torch.device:
        """Of what has values; of a skeleton, meta."""
        with_values = (p.device for p in self.model.parameters() if not p.is_meta)
        return next(with_values, torch.device("meta"))

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of a runner that reads texts: `ids`, `continuation_ids`, `checked_ids`, `text`."""
        raise self._cannot("tokenize text")

    def at_rest(self) -> AbstractContextManager[None]:
        """Inside and afterwards, the model is as if nothing had run.  Default: it keeps nothing between calls."""
        return nullcontext()

    def settings(self, steps: int | None = None, guidance: float | None = None) -> None:
        """Paint with other denoising steps or another guidance scale than the folder's."""
        raise self._cannot("choose steps or guidance")

    def trainer(self, family: Family) -> Trainer:
        """Trains the model, with the settings of this runner where they matter.  ModelError where it cannot be."""
        return family.trainer(self.model, self.folder)

    # -- tasks ---------------------------------------------------------------------------------------------

    def answer(
        self, images: Sequence[Any], questions: Sequence[str], max_new_tokens: int = 16
    ) -> list[str]:
        """A greedily decoded answer for each picture and question; an entry of `images` may be a list of them."""
        raise self._cannot("answer questions")

    def score(
        self, images: Sequence[Any], prompts: Sequence[str | None], continuations: Sequence[Sequence[str]]
    ) -> list[list[Likelihood]]:
        """How likely the model finds each of the continuations of each picture and prompt.

        An entry of `images` may be None or a list, a prompt None: then the continuation is the whole text.
        """
        raise self._cannot("score continuations")

    def logits(self, ids: Tensor) -> Tensor:
        """(B, T) ids of plain text -> (B, T, V)."""
        raise self._cannot("score plain text")

    def generate(
        self, prompts: Sequence[str], seed: int, places: Sequence[int] | None = None
    ) -> list[Picture]:
        """A picture (h, w, 3) for each prompt; noise follows from `seed` and the prompt's place alone.

        places: default 0, 1, 2 and so on.  A part of a list is painted like the whole if it keeps its places.
        """
        raise self._cannot("generate pictures")

    def latents(self, pictures: Sequence[Any]) -> list[Tensor]:
        """(z, h, w) of each picture: where the autoencoder puts it."""
        raise self._cannot("encode pictures")

    # -- calibration, counting, checks ---------------------------------------------------------------------

    @abstractmethod
    def feed(
        self, items: Sequence[UnderstandingItem | GenerationItem], at_time: Callable[[float], None] | None = None
    ) -> None:
        """Run the model over calibration items, for the statistics' sake.

        `at_time`, if given, hears the time (1: noise, 0: picture) of each denoising step before it runs.
        """

    def portions(self, items: Sequence[Any]) -> list[list[Any]]:
        """All items, in parts that `feed` would each send through the model once."""
        return [[item] for item in items]

    @abstractmethod
    def pass_tokens(self, task: Task) -> int:
        """Send one sample's tokens through the network once and return their number: for counting work."""

    def pass_text(self) -> int:
        """One text through the network; how many tokens.  UncountedError where a skeleton cannot be run on it."""
        raise UncountedError(f"run {type(self.model).__name__} on a text", "it is not run on plain text here")

    @abstractmethod
    def workload(self, task: Task) -> Work:
        """Run a fixed amount of the task's work and time it."""

    @abstractmethod
    def probe(self) -> dict[str, Tensor]:
        """Outputs of every task on fixed inputs: what a reloaded model must reproduce to the last bit."""

    def _cannot(self, what: str) -> UsageError:
        does = " and ".join(self.tasks)
        return UsageError(what, f"{type(self.model).__name__} is not run on that here; it does {does}", "leave it out")
