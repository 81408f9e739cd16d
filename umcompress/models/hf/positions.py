"""Blocks that make the biases of positions for those above (T5: its first one): they have to stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from transformers import PreTrainedModel

from umcompress.errors import PlanError

_FLAG = "has_relative_attention_bias"


def check_removable(model: PreTrainedModel, stacks: Mapping[str, str], removed: Mapping[str, Sequence[int]]) -> None:
    """PlanError where a block at one of these positions makes biases, and one that stays makes none."""
    for stack, path in stacks.items():
        made = [_makes_biases(block) for block in model.get_submodule(path).children()]
        gone = set(removed.get(stack, ()))
        lost = [index for index in sorted(gone) if made[index]]
        if lost and not all(own for index, own in enumerate(made) if index not in gone):
            listed = ", ".join(map(str, lost))
            raise PlanError(
                f"drop blocks {listed} of {path}", "the blocks above use the biases of positions that it makes",
                "leave these blocks out: `layers` of the step says which may go",
            )  # fmt: skip


def _makes_biases(block: nn.Module) -> bool:
    return any(vars(module).get(_FLAG) is True for module in block.modules())
