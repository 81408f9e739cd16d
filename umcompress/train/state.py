"""The checkpoint of a training, from which it resumes exactly: one safetensors file, written atomically."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from umcompress.checkpoint.writer import in_memory, write_file
from umcompress.errors import CheckError

FILE = "training.safetensors"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class State:
    """Live tensors to save, by kind (`parameter`, `average`, `step`, `exp_avg`, `exp_avg_sq`, `load`) and name.

    Saving reads them; loading writes into them.  Sharded ones are gathered, so every process must take part.
    """

    tensors: Mapping[str, Mapping[str, Tensor]]

    def save(self, folder: Path, steps: int, writes: bool) -> None:
        """Save the state after `steps` steps.  Only the process with `writes` writes."""
        flat = {f"{kind}/{name}": tensor for kind, part in self.tensors.items() for name, tensor in part.items()}
        found = {name: full_tensor(tensor) for name, tensor in flat.items()}
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            tensors = {name: in_memory(tensor) for name, tensor in found.items()}
            write_file(folder / FILE, tensors, {"steps": str(steps)})

    def load(self, folder: Path) -> int:
        """Restore the state; returns the steps done, 0 without a checkpoint.  CheckError if it does not fit."""
        file = folder / FILE
        if not file.is_file():
            return 0
        from safetensors import SafetensorError, safe_open

        asked = f"the training checkpoint {file}"
        flat = {f"{kind}/{name}": tensor for kind, part in self.tensors.items() for name, tensor in part.items()}
        try:
            with safe_open(file, "pt") as stored:
                if set(stored.keys()) != set(flat):
                    raise CheckError(asked, "it is of another training", f"remove it: rm {file}")
                steps = int(stored.metadata()["steps"])
                for name, tensor in flat.items():
                    _put(tensor, stored.get_tensor(name))
        except SafetensorError as error:
            raise CheckError(asked, f"it is damaged: {error}", f"remove it: rm {file}") from error
        return steps


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor, gathered where it is sharded over processes."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor.detach() if gather is None else gather().detach()


@torch.no_grad()
def _put(tensor: Tensor, value: Tensor) -> None:
    mesh = getattr(tensor, "device_mesh", None)
    if mesh is not None:
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(mesh.device_type), mesh, tensor.placements)  # type: ignore[attr-defined]
    tensor.copy_(value)
