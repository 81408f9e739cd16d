"""What the runs of a sweep have in common: the loaded model, calibrations, and steps that begin alike."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umcompress.extend.pass_base import TrainingPass
from umcompress.models.source import Source
from umcompress.run.folder import RunFolder
from umcompress.run.held_model import HeldModel

if TYPE_CHECKING:
    from torch import nn

    from umcompress.recipe.recipe import Recipe

# Calibrations that are held at once: some statistics take gigabytes.
_HELD = 2


def twin(model: nn.Module) -> nn.Module:
    """A copy to be rewritten: its parameters are its own, the memory behind them is shared.  Not to be trained."""
    from torch import nn as torch_nn

    own: dict[int, Any] = {}
    for parameter in model.parameters():
        own[id(parameter)] = torch_nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    return copy.deepcopy(model, own)


@dataclass(frozen=True)
class SharedSource(Source):
    """A source whose model is read once."""

    kept: list[Any] = field(default_factory=list, compare=False)

    def load(self) -> nn.Module:
        if not self.kept:
            self.kept.append(super().load())
        return twin(self.kept[0])


def trains(recipe: Recipe) -> bool:
    """Whether a step changes weights in place."""
    return any(isinstance(step.pass_, TrainingPass) for step in recipe.steps)


class Shared:
    """Calibrations and committed steps of one sweep, each by what it follows from."""

    def __init__(self) -> None:
        self._calibrations: dict[Hashable, Any] = {}
        self._steps: dict[str, Path] = {}

    def calibrated(self, key: Hashable, held: HeldModel, measure: Callable[[HeldModel], Any]) -> tuple[Any, bool]:
        """What `measure` makes of the model, and whether it was made before.

        It is made of a twin: statistics may be read, or measured again, after the model itself was rewritten.
        """
        if known := key in self._calibrations:
            self._calibrations[key] = self._calibrations.pop(key)
        else:
            while len(self._calibrations) >= _HELD:
                del self._calibrations[next(iter(self._calibrations))]
            other = copy.copy(held)
            other.model = twin(held.model)
            self._calibrations[key] = measure(other)
        return self._calibrations[key], known

    def give(self, folder: RunFolder) -> None:
        """Put into a run's folder the steps, from the baseline on, that another run took from the same start."""
        for index, (step, key) in enumerate(zip(folder.depends_on.steps, folder.depends_on.keys(), strict=True)):
            if folder.committed(index, step.name) is None and key in self._steps:
                folder.copy_step(index, step.name, self._steps[key])

    def take(self, folder: RunFolder) -> None:
        """Remember the committed steps of a run."""
        for index, (step, key) in enumerate(zip(folder.depends_on.steps, folder.depends_on.keys(), strict=True)):
            if folder.committed(index, step.name) is not None:
                self._steps.setdefault(key, folder.step_path(index, step.name))
