"""What stands in place of a module that was removed because the kept task never reads it."""

from __future__ import annotations

from torch import Tensor, nn

from umcompress.documents.base import Task
from umcompress.errors import ModelError


class Absent(nn.Module):
    """Nothing but the name of what was here: without parameters, and an error when a token comes."""

    def __init__(self, path: str, task: Task) -> None:
        super().__init__()
        self.path, self.task = path, task

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        """A stream without rows passes: (0, H) -> (0, H)."""
        if x.numel():
            raise ModelError(
                f"run {self.path}", f"it was removed: the model is specialized for {self.task}, which never reads it",
                "take the model as it was before `specialize`",
            )  # fmt: skip
        return x


def kept_task(model: nn.Module) -> Task | None:
    """The one task that a specialized model still does; None of any other model."""
    return next((module.task for module in model.modules() if isinstance(module, Absent)), None)
