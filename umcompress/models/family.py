"""What a model family brings: loading, components, running each task.  Each has a folder under `models`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from umcompress.checkpoint.layout import WeightFiles
from umcompress.checkpoint.writer import TensorToWrite
from umcompress.documents.base import Component, Task
from umcompress.documents.plan import Plan
from umcompress.errors import ModelError, UsageError
from umcompress.models.plain_folder import Plain
from umcompress.models.runner import Runner
from umcompress.models.trainer import Trainer


class Family(ABC):
    """A kind of model.  Stateless: everything about one model is read from its folder."""

    name: ClassVar[str]
    main_stack: ClassVar[str]
    # A general family takes the folders that no other family knows.
    general: ClassVar[bool] = False
    # The layouts that `umcompress export --to` can write such a model in.
    layouts: ClassVar[tuple[str, ...]] = ()

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

    def not_read(self, model: nn.Module) -> Mapping[str, Task]:
        """Module path -> the task whose result does not depend on what the module computes, though it runs."""
        return {}

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

    def left_aside(self, folder: Path, model: nn.Module | None = None) -> Sequence[str]:
        """In words, which tensors of the weight files the model has no use for; no result has them.

        model: a skeleton of what is in the folder, where one is there already.
        """
        return ()

    def plain(
        self, model: nn.Module, folder: Path, plans: Sequence[Plan], values: Mapping[str, TensorToWrite] | None = None
    ) -> Plain | str:
        """A folder that holds `model` without the plans; else why there is none ("": nothing worth saying).

        `folder` and `plans`: where the model came from. values: the tensors of a skeleton.
        """
        return ""

    def laid_out(
        self, layout: str, model: nn.Module, folder: Path, values: Mapping[str, TensorToWrite] | None = None,
        pad: bool = False,
    ) -> Plain | str:
        """A folder of `model` in one of the `layouts`, for a reader other than us; or why there is none.

        pad: what was removed is filled up with zeros to one width before. Other arguments as in `plain`.
        """
        return f"a {self.name} model has no layout {layout}"

    def opened(self, model: nn.Module, folder: Path) -> Any:
        """What `umcompress.load` gives: the model; a family whose models are used through another object gives that."""
        return model

    def load(self, folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> nn.Module:
        """The unmodified model of `folder`."""
        model = self.skeleton(folder)
        self.fill(model, folder, dtype, device)
        return model
