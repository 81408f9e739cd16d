"""Runners without a model, for tests of what asks a runner one thing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from umcompress.documents.base import Task
from umcompress.models.runner import Runner, Work


class FakeRunner(Runner):
    """Does nothing; a test that asks it for anything else than what its subclass has is wrong."""

    tasks: tuple[Task, ...] = ("understanding",)

    def feed(self, *_: Any) -> None:
        raise AssertionError("no calibration here")

    def pass_tokens(self, task: Task) -> int:
        raise AssertionError("no counting here")

    def workload(self, task: Task) -> Work:
        raise AssertionError("no timing here")

    def probe(self) -> dict[str, Tensor]:
        raise AssertionError("no outputs here")


class Scripted(FakeRunner):
    """Answers by rule and remembers what it was asked."""

    def __init__(self, answer: Any, batch: int = 4, model: nn.Module | None = None) -> None:
        self._answer, self._batch = answer, batch
        self.model = model or nn.Identity()
        self.asked: list[str] = []
        self.shown: list[Any] = []
        self.tokens: set[int] = set()

    @property
    def batch_size(self) -> int:
        return self._batch

    def answer(self, images: Sequence[Any], questions: Sequence[str], max_new_tokens: int = 16) -> list[str]:
        self.asked += questions
        self.shown += images
        self.tokens.add(max_new_tokens)
        return [self._answer(question) if callable(self._answer) else self._answer for question in questions]


class Clock(FakeRunner):
    """Its work takes the seconds given, one after the other, and again."""

    def __init__(self, *seconds: float) -> None:
        self.seconds, self.calls = seconds, 0

    def workload(self, task: Task) -> Work:
        self.calls += 1
        seconds = self.seconds[(self.calls - 1) % len(self.seconds)]
        return Work(seconds, {"tokens_per_second": 1 / seconds})
