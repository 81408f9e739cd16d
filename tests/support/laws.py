"""How the laws of plans are tested: how many plans are drawn, on which models, and what a model computes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from pico import MODELS
from torch import Tensor, nn

law = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)
kinds = pytest.mark.parametrize("kind", list(MODELS))


def outputs(model: nn.Module, kind: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    with torch.no_grad():
        result = model(*MODELS[kind][1](dtype=dtype))
    return result if isinstance(result, tuple) else (result,)
