"""The interfaces of leaf modules that edits know: an attention, and a feed-forward that was split into experts.

An attention is a leaf of the traced graph: how it mixes tokens is not traced. A leaf that follows
`StreamAttention` says which Linears each stream owns and how heads lie in them; the generic edits then slice
the Linears, and the leaf only updates its integers. Another leaf can still be dropped as a whole.

Layout: row `((group * query_heads_per_group) + j) * head_dim + d` of the query Linear is channel d of query
head j of a key-value group; key and value rows are `group * head_dim + d`; columns of the output Linear are
ordered as query rows. One Linear may make all three, bundle by bundle: see `StreamLayout.bundles`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True)
class JoinedStream:
    """Linears of another stream of tokens with the same heads; "" for one that is not there."""

    query: str
    key: str
    value: str
    output: str


@dataclass(frozen=True)
class StreamLayout:
    """One stream of an attention. Names are those of child modules of the attention.

    Where one Linear makes queries, keys and values it is named three times, and `..._start` are their first rows.
    bundles: how many times queries, keys and values of some groups follow each other in it, equally many groups in
    each, `..._start` counted from the first row of a bundle; 0: every group is a bundle, however many there are.
    head_norms: norms whose tensors have a row for each head, of the queries or of the keys.
    norm_lists: lists of norms, one for each head, of the queries or of the keys.
    query_rows: rows of the query Linear for each head, where it makes more than queries (gates behind them).
    output: "" where the block's own Linear reads the heads, perhaps beside other channels.
    joined: streams whose tokens meet this one's in the same heads, and which lose the same of them.
    rows_behind: rows that follow in the Linear that makes all three, and are no head's.
    """

    query: str
    key: str
    value: str
    output: str
    norms: tuple[str, ...]
    key_value_groups: int
    query_heads_per_group: int
    head_dim: int
    query_start: int = 0
    key_start: int = 0
    value_start: int = 0
    head_norms: tuple[tuple[str, Literal["query", "key"]], ...] = ()
    norm_lists: tuple[tuple[str, Literal["query", "key"]], ...] = ()
    query_rows: int = 0
    bundles: int = 1
    joined: tuple[JoinedStream, ...] = ()
    rows_behind: int = 0

    @property
    def query_heads(self) -> int:
        return self.key_value_groups * self.query_heads_per_group

    def first_row(self, start: int, group: int, head: int = 0, rows: int = 0) -> int:
        """The first row of head `head` of a group, with `rows` rows for each head (0: `head_dim` for each group)."""
        size = self.key_value_groups // (self.bundles or self.key_value_groups)
        bundle, place = divmod(group, size)
        whole = size * (self.query_heads_per_group + 2) * self.head_dim
        own = (place * self.query_heads_per_group + head) * rows if rows else place * self.head_dim
        return bundle * whole + start + own

    def kept_rows(self, groups: Sequence[int], heads: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Map each Linear to the rows that stay, in order. heads: those of these groups, equally many of each."""
        per, each = len(heads) // len(groups), self.query_rows or self.head_dim
        size = len(groups) // (self.bundles or len(groups))
        found: dict[str, tuple[int, ...]] = {}
        for place in range(0, len(groups), size):
            some, own = groups[place : place + size], heads[place * per : (place + size) * per]
            of_heads = [divmod(head, self.query_heads_per_group) for head in own]
            parts = [(self.query_start, self.query, each, [
                self.first_row(self.query_start, group, head, each) for group, head in of_heads
            ])]  # fmt: skip
            for name, start in ((self.key, self.key_start), (self.value, self.value_start)):
                parts.append((start, name, self.head_dim, [self.first_row(start, group) for group in some]))
            for _, name, rows, firsts in sorted(parts, key=lambda part: part[0]):
                wanted = (first + row for first in firsts for row in range(rows))
                found[name] = (*found.get(name, ()), *wanted)
        if self.rows_behind:
            first = self.value_start + self.key_value_groups * self.head_dim
            found[self.value] = (*found[self.value], *range(first, first + self.rows_behind))
        for stream in self.joined:
            for name, units in ((stream.query, heads), (stream.key, groups), (stream.value, groups)):
                if name:
                    found[name] = tuple(unit * self.head_dim + row for unit in units for row in range(self.head_dim))
        return found


@runtime_checkable
class StreamAttention(Protocol):
    """An attention over one or more streams of tokens.

    `forward` takes one tensor (or None) a stream first, in the order of `stream_components`, then anything
    else. With one stream it returns that stream's tensor; with several, a tuple in the same order, None where
    a stream was dropped.
    """

    stream_components: tuple[str, ...]
    layer_idx: int

    def stream(self, component: str) -> StreamLayout | None:
        """The layout of a stream as it is now, None once it was dropped."""

    def keep_heads(
        self, component: str, key_value_groups: tuple[int, ...] | None, query_heads: tuple[int, ...] | None
    ) -> None:
        """Record which heads remain; exactly one of the two is given, as positions in the current layout.

        `query_heads` are flat positions (group * query_heads_per_group + j), equally many in every group.
        """

    def drop_stream(self, component: str) -> None:
        """Forget a stream and delete its children; `forward` gets None in its place from now on."""


@runtime_checkable
class ExpertSizes(Protocol):
    """The sizes and names of a split feed-forward; names are the last parts of the linears' paths.

    A producer that is named k times gives k equal parts of its rows.
    """

    @property
    def hidden(self) -> int: ...
    @property
    def experts(self) -> int: ...
    @property
    def active(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def producers(self) -> tuple[str, ...]: ...
    @property
    def consumer(self) -> str: ...
    @property
    def shared_width(self) -> int: ...
    @property
    def weighting(self) -> str: ...
    @property
    def selector(self) -> bool: ...


@runtime_checkable
class RoutedFeedForward(Protocol):
    """A feed-forward of which each token uses some experts: one leaf of the traced graph.

    Its children `experts.{producer}` and `experts.{consumer}` hold the stacked weights, experts first.
    """

    @property
    def shape(self) -> ExpertSizes: ...

    def route(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows (T, hidden) -> (weights (T, active), chosen experts (T, active), logits (T, experts))."""


def has_streams(module: object) -> bool:
    """`isinstance(module, StreamAttention)`, which looks at every attribute, after a look at one method."""
    return hasattr(type(module), "keep_heads") and isinstance(module, StreamAttention)


def is_routed(module: object) -> bool:
    """The same for `RoutedFeedForward`."""
    return hasattr(type(module), "route") and isinstance(module, RoutedFeedForward)
