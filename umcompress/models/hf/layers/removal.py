"""Blocks that are taken out of one stack: what the rules about layers are told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from umcompress.errors import PlanError
from umcompress.models.hf.layers.config_fields import owner_of

OTHER_BLOCKS = "leave these blocks out: `layers` of the step says which may go"


@dataclass(frozen=True)
class Removal:
    """gone: the positions that the blocks had among the `before` ones.  A rule is asked twice: `check` while they are
    still there, `renumber` when they have been taken out.

    stacks, removed: paths of all stacks of the model, and positions that are taken out of each.
    """

    model: PreTrainedModel
    stack: str
    path: str
    before: int
    stacks: Mapping[str, str]
    removed: Mapping[str, Sequence[int]]

    @cached_property
    def gone(self) -> frozenset[int]:
        return frozenset(self.removed.get(self.stack, ()))

    @cached_property
    def kept(self) -> list[int]:
        """Positions before, of the blocks that stay: their places in this list are their positions after."""
        return [position for position in range(self.before) if position not in self.gone]

    @cached_property
    def new(self) -> dict[int, int]:
        """Position before -> position after."""
        return {old: position for position, old in enumerate(self.kept)}

    @property
    def blocks(self) -> nn.ModuleList:
        blocks = self.model.get_submodule(self.path)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    @property
    def owner(self) -> nn.Module:
        """The module that runs the blocks."""
        return owner_of(self.model, self.path)[0]

    @property
    def config(self) -> Any:
        """The configuration that it reads."""
        return owner_of(self.model, self.path)[1]

    @property
    def modules_above(self) -> list[Any]:
        """Every module that the stack lies in, the model first."""
        parts = self.path.split(".")
        return [self.model.get_submodule(".".join(parts[:end])) for end in range(len(parts))]

    def refused(self, blocks: Iterable[int], why: str, do: str = OTHER_BLOCKS) -> PlanError:
        """The error for blocks that have to stay."""
        return PlanError(f"drop blocks {', '.join(map(str, sorted(blocks)))} of {self.path}", why, do)
