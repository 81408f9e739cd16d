"""What a family may do after a plan's structure is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class SettlingFamily(Protocol):
    """A family whose models keep count of their blocks elsewhere than in the blocks."""

    def check_removable(self, model: nn.Module, removed: Mapping[str, Sequence[int]]) -> None:
        """PlanError where one of these blocks has to stay. removed: stack -> positions. Changes nothing."""

    def settle(self, model: nn.Module, removed: Mapping[str, Sequence[int]]) -> None:
        """removed: stack -> positions that its lost blocks had. Runs alike on a live model and on a skeleton."""
