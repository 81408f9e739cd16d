"""Modules that multiply by a matrix: Linear, and transformers' Conv1D, whose weight lies the other way round.

Everything above sees a weight as (out, in); only what slices the stored tensor asks for the axis.
"""

from __future__ import annotations

from typing import Any, TypeGuard

from torch import Tensor, nn


class Matrix(nn.Module):
    """What is known of such a module; never instantiated."""

    weight: Tensor
    bias: Tensor | None


def is_matrix(module: nn.Module | None) -> TypeGuard[Matrix]:
    """Whether a module is `x W + b` and nothing else."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def is_conv1d(module: nn.Module | None) -> bool:
    """By name and attributes: the graph does not know transformers."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "nx")


def out_axis(module: nn.Module) -> int:
    """The axis of the stored weight on which outputs lie."""
    return 1 if is_conv1d(module) else 0


def outputs(module: nn.Module) -> int:
    """How many values it gives."""
    return int(_any(module).nf if is_conv1d(module) else _any(module).out_features)


def inputs(module: nn.Module) -> int:
    """How many values it takes."""
    return int(_any(module).nx if is_conv1d(module) else _any(module).in_features)


def restate(module: nn.Module, gives: int | None = None, takes: int | None = None) -> None:
    """Write down new sizes."""
    names = ("nf", "nx") if is_conv1d(module) else ("out_features", "in_features")
    for name, size in zip(names, (gives, takes), strict=True):
        if size is not None:
            setattr(module, name, size)


def _any(module: nn.Module) -> Any:
    return module
