"""Linear layers: nn.Linear (weight (out, in)) and transformers' Conv1D (weight (in, out)).

Everything above sees a weight as (out, in); only what slices the stored tensor asks for the axis.
"""

from __future__ import annotations

from typing import Any, TypeGuard

from torch import Tensor, nn


class MatrixModule(nn.Module):
    """The attributes that linear layers have, for type checkers; never instantiated."""

    weight: Tensor
    bias: Tensor | None


def is_matrix(module: nn.Module | None) -> TypeGuard[MatrixModule]:
    """Whether a module is `x W + b` and nothing else."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def is_conv1d(module: nn.Module | None) -> bool:
    """Whether a module is transformers' Conv1D, by name and attributes: this package does not import transformers."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "nx")


def output_axis(module: nn.Module) -> int:
    """The axis of the stored weight on which outputs lie."""
    return 1 if is_conv1d(module) else 0


def output_size(module: nn.Module) -> int:
    """The number of output features."""
    return int(_any(module).nf if is_conv1d(module) else _any(module).out_features)


def input_size(module: nn.Module) -> int:
    """The number of input features."""
    return int(_any(module).nx if is_conv1d(module) else _any(module).in_features)


def set_sizes(module: nn.Module, gives: int | None = None, takes: int | None = None) -> None:
    """Set the attributes that hold the sizes."""
    names = ("nf", "nx") if is_conv1d(module) else ("out_features", "in_features")
    for name, size in zip(names, (gives, takes), strict=True):
        if size is not None:
            setattr(module, name, size)


def _any(module: nn.Module) -> Any:
    return module
