"""What one task of a model that sees and paints reads, found by running it on shapes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from umcompress.documents.base import TASKS, Task
from umcompress.errors import ModelError
from umcompress.graph.model_graph import TaskReads
from umcompress.models.hf.paint.unified_runner import UnifiedRunner, runner
from umcompress.models.reached import read_in_run
from umcompress.rewrite.nn.absent import kept_task, require_task


def read_in(model: PreTrainedModel, task: Task) -> TaskReads:
    """ModelError where the model does not do the task, or is not known to do another one, too."""
    require_task(model, task)
    found = runner(model, Path())
    if not isinstance(found, UnifiedRunner) or found.tasks != TASKS:
        raise ModelError(
            f"specialize {type(model).__name__} for {task}", _why(found),
            "leave the step out; a text encoder is specialized in its pipeline, the folder with model_index.json",
        )

    def run(shapes: nn.Module) -> Iterable[Tensor]:
        of_transformers: Any = shapes
        made = runner(of_transformers, Path())
        assert isinstance(made, UnifiedRunner)
        return made.results(task)

    reached, called = read_in_run(model, run)
    return TaskReads(reached | called)


def _why(found: Any) -> str:
    if kept_task(found.model) is not None:
        return "it does that one task already"
    if isinstance(found, UnifiedRunner) and found.pictures.no_decoder is not None:
        return f"{found.pictures.no_decoder}, so there is one task that it can be kept for"
    return "it is run on understanding alone, and nothing is known to be there for another task"
