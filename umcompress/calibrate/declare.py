"""The statistics that calibration can measure.  A pass declares them; reading one that was not declared raises.

Most declarations are small values: the kind of statistic, and the scope in which it is wanted.  Those about a
split name its sites and carry what was decided there; of them, each is its own key, equal to no other.
Nothing here imports torch: a recipe is validated, and its needs are known, without loading a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

# Channels from which `RoutedMoments` are float32: in float64 one site would take gigabytes.
WIDE = 8192
# Rows of a symmetric sum that are kept together: of each such tile only what lies right of its diagonal is kept.
TILE = 2048
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
    """Inner feed-forward channels h as rows: H = sum h h' / T and their mean, for refitting the consumer.

    What is held of a site grows with the square of its width.  Sites that do not fit into the memory that calibration
    may take are measured when they are read: read them in depth order, and keep none longer than it is needed.
    """

    scope: Scope = field(default_factory=Scope)

    def bytes_held(self, width: int, hidden: int) -> int:
        """Bytes for one site: the upper triangle of H in float64."""
        return 8 * sum(min(TILE, width - start) * (width - start) for start in range(0, width, TILE))


@dataclass(frozen=True)
class HeadContribution:
    """Mean over tokens of ||W_o[:, head] h_head||, per query head and per key-value group (heads summed)."""

    scope: Scope = field(default_factory=Scope)


@dataclass(frozen=True)
class ChannelSamples:
    """Up to `tokens` tokens of each feed-forward, drawn evenly from all: what enters it, and its inner channels.

    Sites that do not fit into the memory that calibration may take are measured when they are read.
    """

    scope: Scope = field(default_factory=Scope)
    tokens: int = 2048
    seed: int = 0

    def bytes_held(self, width: int, hidden: int) -> int:
        """Bytes for one site, in float32."""
        return 4 * self.tokens * (width + hidden)


@dataclass(frozen=True, eq=False)
class Routing:
    """A division of channels into experts (other channels are always active), and the router if there is one.

    The `active` experts with the highest score x @ weight.T + bias run; weight (E, H), bias (E,) or None.
    """

    experts: tuple[tuple[int, ...], ...]
    active: int = 1
    weight: Tensor | None = None
    bias: Tensor | None = None


@dataclass(frozen=True, eq=False)
class ContributionMoments:
    """Moments of inputs x and of each expert's output norm N_e = ||W_e h_e||, for fitting a router.  By site path."""

    routing: Mapping[str, Routing]


@dataclass(frozen=True, eq=False)
class RoutedMoments:
    """Moments of the active channels and of what the output lacks, for refitting the consumer.

    By site path.  What is held of a site grows with the square of its width: see `bytes_held`.
    """

    routing: Mapping[str, Routing]

    @staticmethod
    def bytes_held(width: int, hidden: int) -> int:
        """Bytes for one site, in float64, above WIDE channels in float32."""
        return (width + hidden) * width * (4 if width > WIDE else 8)


Declaration: TypeAlias = (
    BlockSimilarity
    | BranchSimilarity
    | ChannelActivation
    | ChannelMoments
    | ChannelSamples
    | ContributionMoments
    | HeadContribution
    | RoutedMoments
)
# What is measured a group of sites at a time where it does not fit.
Heavy: TypeAlias = ChannelMoments | ChannelSamples
