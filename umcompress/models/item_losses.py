"""The loss of single items: what a model that trains would minimise, measured and not trained on."""

from __future__ import annotations

from typing import Any

from umcompress.models.registry import find_family
from umcompress.models.trainer import Trainer


def trainer_of(runner: Any) -> Trainer:
    """The trainer of a runner's model.  ModelError where its family does not train it."""
    return find_family(runner.folder).trainer(runner.model, runner.folder)
