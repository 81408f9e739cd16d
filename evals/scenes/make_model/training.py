"""What both training stages of `bagel-mini` share: settings, schedule, log, checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from umcompress.extend import atomic_file


@dataclass(frozen=True)
class Settings:
    """Everything that the result depends on."""

    seed: int = 0
    bf16: bool = False
    autoencoder_steps: int = 1_250
    autoencoder_batch: int = 16
    autoencoder_lr: float = 2e-3
    kl_weight: float = 1e-3
    vision_steps: int = 300
    vision_batch: int = 128
    vision_lr: float = 1e-3
    understanding_steps: int = 4_000
    understanding_batch: int = 16
    understanding_lr: float = 1.5e-3
    questions: int = 8
    description_share: float = 0.4
    reading_steps: int = 2_000
    reading_batch: int = 48
    reading_lr: float = 1e-3
    generation_steps: int = 28_000
    generation_batch: int = 64
    generation_lr: float = 2e-3
    pictures: int = 128_000
    layout_share: float = 0.4
    warm_up: int = 100
    weight_decay: float = 0.01
    timestep_shift: float = 2.0
    text_dropout: float = 0.1


def to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """(h, w, 3) uint8 -> (3, h, w) in [-1, 1]."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1


def cosine(step: int, steps: int, warm_up: int, floor: float = 0.02) -> float:
    """Linear warm-up, then half a cosine down to `floor`."""
    if step < warm_up:
        return (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return floor + (1 - floor) * 0.5 * (1 + float(np.cos(np.pi * min(progress, 1.0))))


class Log:
    """One JSON object a line: stage, step, seconds since the start, losses."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.started = path, time.monotonic()

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        line = {"stage": stage, "step": step, "seconds": round(time.monotonic() - self.started, 1)}
        line |= {name: round(value, 5) for name, value in values.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def save_checkpoint(
    path: Path, models: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, step: int
) -> None:
    """All tensors in one safetensors file, renamed into place; the step in its metadata."""
    tensors = {
        f"{name}.{key}": value for name, model in models.items() for key, value in model.state_dict().items()
    }
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path.with_suffix(".safetensors")) as partial:
        save_file({key: value.contiguous() for key, value in tensors.items()}, partial, {"step": str(step)})


def load_checkpoint(path: Path, models: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> int:
    """Restore what `save_checkpoint` wrote; the step to go on from, 0 where there is nothing."""
    from safetensors import safe_open

    file = path.with_suffix(".safetensors")
    if not file.exists():
        return 0
    tensors = load_file(file)
    for name, model in models.items():
        prefix = f"{name}."
        model.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, field = key.split(".", 2)
            state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    with safe_open(file, framework="pt") as opened:
        return int(opened.metadata()["step"])
