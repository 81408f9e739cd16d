"""Places in a model that an edit can act on. Found in traced graphs, named by module path, frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BranchKind = Literal["attention", "feed_forward"]


@dataclass(frozen=True)
class BranchSite:
    """One residual branch of a block.

    part: the module of the block that tells it from other branches of its kind and component; "" where it needs none.
    """

    block: str
    stack: str
    index: int
    kind: BranchKind
    component: str
    part: str = ""

    @property
    def path(self) -> str:
        """Its name: the block's path and what it is, or the module that it is in."""
        return f"{self.block}.{self.part or self.kind}"


@dataclass(frozen=True)
class BlockSite:
    """One block of a stack, at position `index`.

    complete: whether the branches are all that it does to its stream; else some of what it adds was not found.
    """

    path: str
    stack: str
    index: int
    branches: tuple[BranchSite, ...]
    # Of a block in which no branch was found: it can go as a whole all the same.
    component: str = "shared"
    complete: bool = True

    @property
    def components(self) -> frozenset[str]:
        """Every component that one of the branches belongs to."""
        return frozenset(branch.component for branch in self.branches) or frozenset({self.component})

    @property
    def has_streams(self) -> bool:
        """Whether it has a stream for each of several components."""
        return len(self.components) > 1

    def serves(self, component: str) -> bool:
        """Whether it has a part of that component; `shared` means all parts of a block with several streams."""
        return component in self.components or (component == "shared" and self.has_streams)


@dataclass(frozen=True)
class AttentionSite:
    """One stream of an attention. `query`, `key`, `value`, `output` are module paths of its Linears.

    `value_rows`: the first row of each group's values, where one Linear makes all three. `multiple_of`: as many
    groups as stay must be a multiple of it. `output_start`: the first column of the output Linear that reads heads.
    `joined`: (value, output) of streams that have the same heads, as those of text beside those of a picture; the
    output is "" where there is none.
    """

    path: str
    block: str
    stack: str
    index: int
    component: str
    key_value_groups: int
    query_heads_per_group: int
    head_dim: int
    query: str
    key: str
    value: str
    output: str
    value_rows: tuple[int, ...] = ()
    multiple_of: int = 1
    output_start: int = 0
    joined: tuple[tuple[str, str], ...] = ()

    @property
    def query_heads(self) -> int:
        return self.key_value_groups * self.query_heads_per_group

    @property
    def outputs(self) -> tuple[tuple[str, int], ...]:
        """The Linears that read the heads, of every stream, and the first column that does."""
        others = [(output, 0) for _, output in self.joined if output]
        return ((self.output, self.output_start), *others)


@dataclass(frozen=True)
class FeedForwardSite:
    """Inner channels between linears: every producer's output channel c meets column c of the consumer.

    `path` is the deepest module that holds them all; producers and consumer are module paths of Linears. Where the
    consumer reads other channels too, `path` is that of the first producer, `shared_consumer` is set, and
    `consumer_start` is the first column that belongs to channels of this site.
    """

    path: str
    block: str
    stack: str
    index: int
    component: str
    width: int
    producers: tuple[str, ...]
    consumer: str
    activation: str
    gated: bool
    consumer_start: int = 0
    shared_consumer: bool = False


@dataclass(frozen=True)
class ExpertSite:
    """A feed-forward that was split: `experts` of `width` channels, `active` of them for each token.

    Its modules hold the stacked weights: each of `producers` (experts, width, hidden), `consumer` (experts,
    hidden, width). A producer that is named k times has (experts, k * width, hidden), in k equal parts. The router is
    `{path}.gate.weight` (experts, hidden); with `selector`, `{path}.selector` has a weight (experts, hidden) and a
    bias (experts,). `shared_width` channels are always on.
    """

    path: str
    block: str
    stack: str
    index: int
    component: str
    experts: int
    active: int
    width: int
    shared_width: int
    hidden: int
    producers: tuple[str, ...]
    consumer: str
    weighting: str = "one_plus_logit"
    selector: bool = False
