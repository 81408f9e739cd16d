"""What a model family brings: loading, components, running each task.  Each has a folder under `models`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from umcompress.documents import Component, Task

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class UnderstandingItem:
    """Calibration data: a picture (h, w, 3), a question, the answer that is fed with it."""

    image: Any
    question: str
    answer: str


@dataclass(frozen=True)
class GenerationItem:
    """Calibration data: a prompt; the whole sampling run is fed, every step and every guidance branch."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Work:
    """One timed workload: its seconds in all, and what was timed in it."""

    seconds: float
    measures: dict[str, float]


class Runner(Protocol):
    """Runs the tasks of one model."""

    @property
    def tasks(self) -> tuple[Task, ...]: ...

    def answer(
        self, images: Sequence[Any], questions: Sequence[str], max_new_tokens: int = 16
    ) -> list[str]:
        """A greedily decoded answer for each picture and question."""

    def generate(
        self, prompts: Sequence[str], seed: int, places: Sequence[int] | None = None
    ) -> list[Picture]:
        """A picture (h, w, 3) for each prompt; noise follows from `seed` and the prompt's place alone.

        places: default 0, 1, 2 and so on.  A part of a list is painted like the whole if it keeps its places.
        """

    def feed(self, items: Sequence[UnderstandingItem | GenerationItem]) -> None:
        """Run the model over calibration items, for the statistics' sake."""

    def pass_tokens(self, task: Task) -> int:
        """Send one sample's tokens through the network once and return their number: for counting work."""

    def workload(self, task: Task) -> Work:
        """Run a fixed amount of the task's work and time it."""

    def probe(self) -> dict[str, Tensor]:
        """Outputs of every task on fixed inputs: what a reloaded model must reproduce to the last bit."""


class Family(ABC):
    """A kind of model.  Stateless: everything about one model is read from its folder."""

    name: ClassVar[str]
    main_stack: ClassVar[str]

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
    def weight_files(self, model: nn.Module) -> dict[str, dict[str, str]]:
        """Weight file -> name on disk -> name in the module, for every entry of the state dict."""

    @abstractmethod
    def stacks(self, model: nn.Module) -> dict[str, str]:
        """Stack name -> path of its ModuleList."""

    @abstractmethod
    def component_of(self, path: str) -> Component:
        """What the module or parameter at `path` is for."""

    @abstractmethod
    def runner(self, model: nn.Module, folder: Path) -> Runner:
        """Runs the tasks of `model`; tokenizer and settings come from `folder`."""

    def load(self, folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> nn.Module:
        """The unmodified model of `folder`."""
        model = self.skeleton(folder)
        self.fill(model, folder, dtype, device)
        return model
