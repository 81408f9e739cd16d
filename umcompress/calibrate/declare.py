"""What calibration can measure.  A pass declares; one sweep collects; reading what was not declared raises.

Every declaration is a small hashable value: the kind of statistic, and the scope in which it is wanted.
Nothing here imports torch: a recipe is validated, and its needs are known, without loading a model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

BranchKind: TypeAlias = Literal["attention", "feed_forward"]


@dataclass(frozen=True)
class Scope:
    """Which part of a model is meant; None is "all components", "the main stack", "all layers"."""

    component: str | None = None
    stack: str | None = None
    layers: frozenset[int] | None = None

    def query(self) -> dict[str, Any]:
        """The scope as keyword arguments of the site queries of a ModelGraph."""
        return {"component": self.component, "stack": self.stack, "layers": self.layers}


@dataclass(frozen=True)
class BlockSimilarity:
    """Cosine between a component's stream before a block and after it, averaged over tokens."""

    scope: Scope = field(default_factory=Scope)


@dataclass(frozen=True)
class BranchSimilarity:
    """Cosine between x and x + f(x), averaged over tokens, for every residual branch of one kind."""

    unit: BranchKind
    scope: Scope = field(default_factory=Scope)


@dataclass(frozen=True)
class ChannelActivation:
    """Per inner feed-forward channel h: mean |h| and mean h over tokens."""

    scope: Scope = field(default_factory=Scope)


@dataclass(frozen=True)
class ChannelMoments:
    """Inner feed-forward channels h as rows: H = sum h h' / T and their mean, for refitting the consumer."""

    scope: Scope = field(default_factory=Scope)


@dataclass(frozen=True)
class HeadContribution:
    """Mean over tokens of ||W_o[:, head] h_head||, per query head and per key-value group (heads summed)."""

    scope: Scope = field(default_factory=Scope)


Declaration: TypeAlias = (
    BlockSimilarity | BranchSimilarity | ChannelActivation | ChannelMoments | HeadContribution
)
