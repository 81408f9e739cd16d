"""Where the rows of one forward stand: sequences, positions, what each may attend to, and the cache.

A dual-stream forward carries understanding rows (U, H) and generation rows (G, H) apart from start to end.
The context tells the attention how both fall into B sequences.  A *presence* is the set of streams that take
part in a group of heads of a layer: compressed layers differ in it, so that caches and masks are kept per
presence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from umcompress.models.bagel.packing import Packing, packing_cpu

STREAMS = ("understanding", "generation")
Presence = tuple[str, ...]


@dataclass
class Cache:
    """Keys and values of everything absorbed so far, for B sequences.

    `keys[slot, presence]`: (B, P, groups, head_dim), after RoPE.  `valid[presence]`: (B, P) boolean on the
    CPU. `positions[b]` is the next position id of sequence b.  Tensors are never written in place, so `fork`
    is free.
    """

    batch: int
    keys: dict[tuple[int, Presence], Tensor] = field(default_factory=dict)
    values: dict[tuple[int, Presence], Tensor] = field(default_factory=dict)
    valid: dict[Presence, Tensor] = field(default_factory=dict)
    positions: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.positions:
            self.positions = [0] * self.batch

    def fork(self) -> Cache:
        """An independent cache with the same content."""
        return Cache(self.batch, dict(self.keys), dict(self.values), dict(self.valid), list(self.positions))

    def take(self, sequences: Sequence[int]) -> Cache:
        """A cache of these sequences; one that is named several times goes on in several ways."""
        rows = torch.tensor(list(sequences), dtype=torch.long)
        keys, values = (
            {place: kept[rows.to(kept.device)] for place, kept in all_.items()} for all_ in (self.keys, self.values)
        )
        valid = {presence: kept[rows] for presence, kept in self.valid.items()}
        return Cache(len(sequences), keys, values, valid, [self.positions[row] for row in sequences])

    def length(self, sequence: int = 0) -> int:
        """Tokens that sequence `sequence` has absorbed, of both streams."""
        valid = self.valid.get(STREAMS)
        return 0 if valid is None else int(valid[sequence].sum())


class Context:
    """One forward's layout.

    `kinds[b]` lists the stream of each new token of sequence b (0 understanding, 1 generation) in sequence
    order; `positions[b]` their position ids; `allowed` (B, N, N) boolean says which new token may attend to
    which new token (None: all to all).  Past tokens are visible to every new token.
    """

    def __init__(
        self,
        kinds: Sequence[Tensor],
        positions: Sequence[Tensor],
        allowed: Tensor | None = None,
        cache: Cache | None = None,
        append: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.cache = cache
        self.append = append
        # (U,) boolean: which understanding rows are patches of an image; None: none is known to be.
        self.vision_rows: Tensor | None = None
        self.device = torch.device(device)
        self._allowed = allowed
        self.packing: dict[str, Packing] = {}
        self.positions: dict[str, Tensor] = {}
        self._places: dict[str, Tensor] = {}
        self.rope: dict[str, tuple[Tensor, Tensor]] = {}
        self._masks: dict[tuple[str, Presence], Tensor | None] = {}
        self._past = dict(cache.valid) if cache is not None else {}
        for number, stream in enumerate(STREAMS):
            chosen = [kind == number for kind in kinds]
            packing = Packing([int(rows.sum()) for rows in chosen], device)
            self.packing[stream] = packing
            packed = torch.cat([ids[rows] for ids, rows in zip(positions, chosen, strict=True)])
            self.positions[stream] = packed.to(device)
            places = torch.cat([rows.nonzero()[:, 0] for rows in chosen])
            self._places[stream] = packing_cpu(packing).pad(places)
        if cache is not None and append:
            for presence in ((STREAMS[0],), (STREAMS[1],), STREAMS):
                new = torch.cat([self.packing[stream].valid for stream in presence], dim=1)
                past = cache.valid.get(presence)
                cache.valid[presence] = new if past is None else torch.cat([past, new], dim=1)

    def prepare_rope(self, theta: float, head_dim: int) -> None:
        """Rotary tables of each stream's rows: cos and sin (rows, 1, head_dim), float32. The same at every call."""
        if self.rope:
            return
        half = torch.arange(0, head_dim, 2, device=self.device, dtype=torch.float32) / head_dim
        frequencies = 1.0 / (theta**half)
        for stream in STREAMS:
            angles = self.positions[stream].float()[:, None] * frequencies[None]
            angles = torch.cat([angles, angles], dim=-1)[:, None]
            self.rope[stream] = (angles.cos(), angles.sin())

    def join(
        self, slot: int, presence: Presence, keys: Sequence[Tensor], values: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Padded keys and values (B, P + N, groups, head_dim): cached ones, then each stream's new rows."""
        padded = [
            [self.packing[stream].pad(rows) for stream, rows in zip(presence, part, strict=True)]
            for part in (keys, values)
        ]
        key, value = (torch.cat(part, dim=1) for part in padded)
        if self.cache is None:
            return key, value
        past_key = self.cache.keys.get((slot, presence))
        if past_key is not None:
            key = torch.cat([past_key, key], dim=1)
            value = torch.cat([self.cache.values[slot, presence], value], dim=1)
        if self.append:
            self.cache.keys[slot, presence] = key
            self.cache.values[slot, presence] = value
        return key, value

    def mask(self, stream: str, presence: Presence) -> Tensor | None:
        """(B, 1, N_stream, P + N) boolean, true = may attend; None when every place is visible."""
        entry = (stream, presence)
        if entry not in self._masks:
            mask = None if self._all_visible(presence) else self._build_mask(stream, presence)
            self._masks[entry] = None if mask is None or bool(mask.all()) else mask[:, None].to(self.device)
        return self._masks[entry]

    def _all_visible(self, presence: Presence) -> bool:
        """Whether there is nothing to mask: known without a mask of rows times places."""
        past = self._past.get(presence)
        uniform = all(self.packing[other].uniform for other in presence)
        return self._allowed is None and uniform and (past is None or bool(past.all()))

    def _build_mask(self, stream: str, presence: Presence) -> Tensor:
        packing = self.packing[stream]
        batch, queries = packing.batch, packing.length
        places = torch.cat([self._places[other] for other in presence], dim=1)
        valid = torch.cat([self.packing[other].valid for other in presence], dim=1)
        new = valid[:, None, :].expand(batch, queries, -1)
        if self._allowed is not None:
            rows = torch.arange(batch)[:, None, None]
            new = new & self._allowed[rows, self._places[stream][:, :, None], places[:, None, :]]
        past = self._past.get(presence)
        if past is not None:
            new = torch.cat([past[:, None, :].expand(-1, queries, -1), new], dim=2)
        # Padded queries are never read; let them see everything, since an empty softmax is not a number.
        return new | ~packing.valid[:, :, None]


def causal(lengths: Sequence[int]) -> Tensor:
    """(B, N, N) boolean, lower triangular: the in-segment mask of text."""
    longest = max(lengths)
    return torch.ones(longest, longest, dtype=torch.bool).tril().expand(len(lengths), -1, -1)
