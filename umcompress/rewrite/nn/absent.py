"""What stands in place of a module that was removed because the kept task never reads it."""

from __future__ import annotations

from torch import Tensor, nn

from umcompress.documents.base import Task
from umcompress.errors import ModelError

_BEFORE = "take the model as it was before `specialize`"


class Absent(nn.Module):
    """Nothing but the name of what was here: without parameters, and an error when a token comes.

    runs: the task sends tokens here and reads nothing of what comes out, which is nothing from now on.
    """

    def __init__(self, path: str, task: Task, runs: bool = False) -> None:
        super().__init__()
        self.path, self.task, self.runs = path, task, runs

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        """A stream without rows passes: (0, H) -> (0, H).  Where it runs in vain: (..., H) -> (..., 0)."""
        if self.runs:
            return x[..., :0]
        if x.numel():
            raise ModelError(
                f"run {self.path}", f"it was removed: the model is specialized for {self.task}, which never reads it",
                _BEFORE,
            )  # fmt: skip
        return x


def kept_task(model: nn.Module) -> Task | None:
    """The one task that a specialized model still does; None of any other model."""
    return next((module.task for module in model.modules() if isinstance(module, Absent)), None)


def require_task(model: nn.Module, task: Task) -> None:
    """ModelError where a model was specialized for the other task."""
    kept = kept_task(model)
    if kept is not None and kept != task:
        raise ModelError(
            f"{task} with this model", f"it is specialized for {kept}, and has no weights for {task}", _BEFORE
        )
