"""What the engine asks of a model that runs: answer, generate, likelihoods, calibration inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from umcompress.documents.base import Task
from umcompress.models.items import GenerationItem, Picture, UnderstandingItem


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
