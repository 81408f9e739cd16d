"""How the tensors of a model are laid out in weight files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Part:
    """Entry `index` on the first axis of a module's tensor: one in memory, several tensors on disk."""

    name: str
    index: int


Target = str | Part


WeightFiles = Mapping[str, Mapping[str, Target]]


def tied_names(model: nn.Module) -> dict[str, str]:
    """Each further name of a parameter that has several -> its first one."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            tied[name] = first[id(parameter)]
    return tied


def target_name(target: Target) -> str:
    """The tensor of the module that a name on disk belongs to."""
    return target if isinstance(target, str) else target.name
