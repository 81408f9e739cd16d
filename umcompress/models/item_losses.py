"""The loss of single items: what a model that trains would minimise, measured and not trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from umcompress.models.registry import find_family
from umcompress.models.trainer import Trainer

if TYPE_CHECKING:
    from umcompress.models.runner import Runner


def trainer_of(runner: Runner) -> Trainer:
    """The trainer of a runner's model.  ModelError where its family does not train it."""
    return runner.trainer(find_family(runner.folder))
