"""Accumulators of statistics over the rows that pass a site.  Memory grows with width, not with tokens.

Shapes: T rows of one call, H hidden, I channels, g key-value groups, m query heads a group, d head dim.
Everything is summed in float64, whatever the model runs in: counts are large and differences small.
Of a symmetric sum only the upper triangle is kept, in tiles: as much memory and work as a full one in float32.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from umcompress.calibrate.declare import TILE
from umcompress.calibrate.statistics import Channels, Heads, Similarity, UpperTriangleMoments
from umcompress.graph.streams import bound, streams_of

# Rows turned to float64 at a time, so that a long call needs no second copy of its activations.
ROWS = 4096


# Rows whose products are added up in float32 before they join a sum: more err more, fewer cost more additions.
PRODUCT_ROWS = 1024


def _rows(x: Tensor) -> Iterator[Tensor]:
    """(..., W) as float64 pieces of (<= ROWS, W)."""
    flat = x.detach().reshape(-1, x.shape[-1])
    for start in range(0, len(flat), ROWS):
        yield flat[start : start + ROWS].double()


class Columns:
    """Hands on some of the columns of what a linear reads: those of one site."""

    def __init__(self, add: Callable[[Tensor], None], start: int, width: int) -> None:
        self.add, self.start, self.width = add, start, width

    def __call__(self, x: Tensor) -> None:
        self.add(x[..., self.start : self.start + self.width])


class SimilaritySum:
    """Sum of cosines between a stream before and after: both (..., H)."""

    def __init__(self) -> None:
        self.total, self.tokens = 0.0, 0

    def add(self, before: Tensor, after: Tensor) -> None:
        for x, y in zip(_rows(before), _rows(after), strict=True):
            self.total += float(torch.nn.functional.cosine_similarity(x, y, dim=1, eps=1e-30).sum())
            self.tokens += len(x)

    def result(self) -> Similarity:
        return Similarity(self.total / max(self.tokens, 1), self.tokens)


def watch_block(block: nn.Module, total: SimilaritySum) -> tuple[RemovableHandle, RemovableHandle]:
    """Watch a block from outside: its stream is what it takes first, and what it gives, or gives first.

    Of a block with several streams (pictures and text beside each other) the tokens of all are watched.
    """
    if streams := streams_of(block):
        return _watch_streams(block, streams, total)
    # By thread: out of core several samples are inside of a block at once, each in a thread of its own.
    entered: dict[int, Tensor] = {}

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream = args[0] if args else kwargs["hidden_states"] if "hidden_states" in kwargs else first_of(kwargs)
        # A copy: the block may add to it in place.
        entered[threading.get_ident()] = stream.detach().clone()

    def leave(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        total.add(entered.pop(threading.get_ident()), output[0] if isinstance(output, tuple | list) else output)

    return block.register_forward_pre_hook(enter, with_kwargs=True), block.register_forward_hook(leave)


def _watch_streams(
    block: nn.Module, streams: dict[str, int], total: SimilaritySum
) -> tuple[RemovableHandle, RemovableHandle]:
    """streams: argument of the block -> its place in what the block gives."""
    entered: dict[int, dict[str, Any]] = {}

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = bound(block, args, kwargs)
        copies = {name: given[name].detach().clone() for name in streams if isinstance(given.get(name), Tensor)}
        entered[threading.get_ident()] = copies

    def leave(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        before = entered.pop(threading.get_ident())
        if isinstance(output, Tensor):
            # The last block may give back one of its streams alone.
            same = [stream for stream in before.values() if stream.shape == output.shape]
            total.add(same[0], output)
            return
        for name, stream in before.items():
            if isinstance(after := output[streams[name]], Tensor):
                total.add(stream, after)

    return block.register_forward_pre_hook(enter, with_kwargs=True), block.register_forward_hook(leave)


def first_of(kwargs: dict[str, Any]) -> Tensor:
    """The first tensor of a call by names."""
    return next(value for value in kwargs.values() if isinstance(value, Tensor))


class ChannelSum:
    """Sums of |h| and h per channel; h is (..., I)."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.absolute = torch.zeros(width, dtype=torch.float64, device=device)
        self.signed = torch.zeros_like(self.absolute)
        self.tokens = 0

    def add(self, h: Tensor) -> None:
        for rows in _rows(h):
            self.absolute += rows.abs().sum(0)
            self.signed += rows.sum(0)
            self.tokens += len(rows)

    def result(self) -> Channels:
        count = max(self.tokens, 1)
        return Channels((self.absolute / count).cpu(), (self.signed / count).cpu(), self.tokens)


class MomentSum:
    """Sums of h h' (I, I), the upper triangle as `UpperTriangleMoments` has it, and h (I,).

    Products are made in float32 for few rows at a time (in float64 where the model is), and of h less its mean over
    the first call: what is later solved for is the covariance, and of channels far from 0 the products of h itself
    would have lost it. So they err by 1e-7 of the variances, and cost half of what they do in float64.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.pivot: Tensor | None = None
        self.first = torch.zeros(width, dtype=torch.float64, device=device)
        self.tiles = [self.first.new_zeros(min(TILE, width - at), width - at) for at in range(0, width, TILE)]
        self.tokens = 0

    def add(self, h: Tensor) -> None:
        flat = h.detach().reshape(-1, h.shape[-1])
        kind = torch.promote_types(flat.dtype, torch.float32)
        if not len(flat):
            return
        if self.pivot is None:
            self.pivot = flat.mean(0, dtype=torch.float64).to(kind)
        for start in range(0, len(flat), PRODUCT_ROWS):
            some = flat[start : start + PRODUCT_ROWS]
            rows = some.to(kind) - self.pivot
            for number, tile in enumerate(self.tiles):
                right = rows[:, number * TILE :]
                tile += right[:, : len(tile)].T @ right
            self.first += some.double().sum(0)
            self.tokens += len(rows)

    def result(self) -> UpperTriangleMoments:
        pivot = self.first.new_zeros(len(self.first)) if self.pivot is None else self.pivot.double()
        self.first /= max(self.tokens, 1)
        off = self.first - pivot
        for number, tile in enumerate(self.tiles):
            # In place: a second copy of all sites would be the largest thing in memory.
            tile /= max(self.tokens, 1)
            here, right = (slice(number * TILE, end) for end in (number * TILE + len(tile), None))
            # E hh' = E (h - c)(h - c)' + (E h) c' + c (E h - c)'
            tile.addr_(self.first[here], pivot[right]).addr_(pivot[here], off[right])
        return UpperTriangleMoments(tuple(tile.cpu() for tile in self.tiles), self.first.cpu(), self.tokens)


class HeadSum:
    """Sums of ||W x|| over rows, per query head and per group, from the input (..., g*m*d) of the projection.

    With W[:, group] = Q R the norm of W x is that of R x, so only the small R (at most m*d, m*d) is kept.
    Streams with the same heads have a projection each; the mean is over the tokens of all.
    """

    def __init__(self, weights: Sequence[Tensor], groups: int, heads: int) -> None:
        self.factors = [
            [torch.linalg.qr(part, mode="r").R for part in weight.detach().double().chunk(groups, dim=1)]
            for weight in weights
        ]
        self.heads, weight = heads, weights[0]
        self.head_total = torch.zeros(groups, heads, dtype=torch.float64, device=weight.device)
        self.group_total = torch.zeros(groups, dtype=torch.float64, device=weight.device)
        self.tokens = 0

    def add(self, x: Tensor, output: int = 0) -> None:
        factors = self.factors[output]
        for rows in _rows(x):
            for group, (part, factor) in enumerate(zip(rows.chunk(len(factors), dim=1), factors, strict=True)):
                self.group_total[group] += (part @ factor.T).norm(dim=1).sum()
                pairs = zip(part.chunk(self.heads, dim=1), factor.chunk(self.heads, dim=1), strict=True)
                for head, (x_head, r_head) in enumerate(pairs):
                    self.head_total[group, head] += (x_head @ r_head.T).norm(dim=1).sum()
            self.tokens += len(rows)

    def result(self) -> Heads:
        count = max(self.tokens, 1)
        heads = (self.head_total / count).flatten().cpu()
        return Heads(heads, (self.group_total / count).cpu(), self.tokens)
