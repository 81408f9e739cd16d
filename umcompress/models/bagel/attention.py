"""The joint attention of BAGEL: two weight sets, one sequence.

T rows of a stream, B sequences, N new tokens, P past ones, g key-value groups, m query heads a group, d
head_dim.
"""

from __future__ import annotations

from torch import Tensor, cat, nn, tensor
from torch.nn import functional

from umcompress.graph.protocol import StreamLayout
from umcompress.models.bagel.config import TextConfig
from umcompress.models.bagel.context import STREAMS, Context, Presence
from umcompress.models.bagel.layers import RMSNorm, rotate

SUFFIX = {"understanding": "", "generation": "_moe_gen"}
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")


class BagelAttention(nn.Module):
    """Each stream has its own projections and norms; heads of the same group identity meet in one softmax.

    Compression may take groups, query heads, or everything from one stream.  A group that a stream has lost
    is neither queried nor offered by that stream's tokens; the others go on with what remains.
    """

    stream_components = STREAMS

    def __init__(self, config: TextConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        groups, heads = config.num_key_value_heads, config.num_attention_heads
        # Identities of the groups that each stream still has, in the order of its weight rows.
        self.groups: dict[str, tuple[int, ...]] = {stream: tuple(range(groups)) for stream in STREAMS}
        self.heads_per_group = dict.fromkeys(STREAMS, heads // groups)
        width, kept = heads * self.head_dim, groups * self.head_dim
        for suffix in SUFFIX.values():
            self.add_module(f"q_proj{suffix}", nn.Linear(config.hidden_size, width))
            self.add_module(f"k_proj{suffix}", nn.Linear(config.hidden_size, kept))
            self.add_module(f"v_proj{suffix}", nn.Linear(config.hidden_size, kept))
            self.add_module(f"o_proj{suffix}", nn.Linear(width, config.hidden_size, bias=False))
            self.add_module(f"q_norm{suffix}", RMSNorm(self.head_dim, config.rms_norm_eps))
            self.add_module(f"k_norm{suffix}", RMSNorm(self.head_dim, config.rms_norm_eps))

    def part(self, kind: str, stream: str) -> nn.Module:
        """The child of `stream` whose official name starts with `kind`."""
        return self.get_submodule(kind + SUFFIX[stream])

    def stream(self, component: str) -> StreamLayout | None:
        """The layout of one stream, None once it is dropped."""
        if component not in self.groups:
            return None
        q, k, v, o, q_norm, k_norm = (kind + SUFFIX[component] for kind in KINDS)
        return StreamLayout(
            query=q, key=k, value=v, output=o, norms=(q_norm, k_norm),
            key_value_groups=len(self.groups[component]),
            query_heads_per_group=self.heads_per_group[component], head_dim=self.head_dim,
        )

    def keep_heads(
        self, component: str, key_value_groups: tuple[int, ...] | None, query_heads: tuple[int, ...] | None
    ) -> None:
        """Book-keeping of a head cut; the edit slices the projections."""
        if key_value_groups is not None:
            self.groups[component] = tuple(self.groups[component][i] for i in key_value_groups)
        if query_heads is not None:
            self.heads_per_group[component] = len(query_heads) // len(self.groups[component])

    def drop_stream(self, component: str) -> None:
        """Forget one stream, its projections and norms with it."""
        del self.groups[component]
        for kind in KINDS:
            delattr(self, kind + SUFFIX[component])

    def head_sets(self) -> dict[Presence, tuple[int, ...]]:
        """Group identities by the streams that share them, in a fixed order."""
        sets: dict[Presence, list[int]] = {}
        for identity in sorted({i for groups in self.groups.values() for i in groups}):
            presence = tuple(stream for stream in STREAMS if identity in self.groups.get(stream, ()))
            sets.setdefault(presence, []).append(identity)
        return {presence: tuple(identities) for presence, identities in sets.items()}

    def forward(
        self, und: Tensor | None, gen: Tensor | None, context: Context
    ) -> tuple[Tensor | None, Tensor | None]:
        """(U, H), (G, H) normed rows -> what each stream's residual receives (None for a dropped stream)."""
        rows = {stream: x for stream, x in zip(STREAMS, (und, gen), strict=True) if x is not None}
        projected = {stream: self._project(stream, x, context) for stream, x in rows.items()}
        mixed: dict[str, list[Tensor]] = {stream: [] for stream in rows}
        order: dict[str, list[int]] = {stream: [] for stream in rows}
        for presence, identities in self.head_sets().items():
            picks = {stream: [self.groups[stream].index(i) for i in identities] for stream in presence}
            keys = [self._pick(projected[stream][1], picks[stream]) for stream in presence]
            values = [self._pick(projected[stream][2], picks[stream]) for stream in presence]
            key, value = context.join(self.layer_idx, presence, keys, values)
            for stream in presence:
                query = self._pick(projected[stream][0], picks[stream])
                mixed[stream].append(_attend(query, key, value, stream, presence, context))
                order[stream] += picks[stream]
        out = {}
        for stream in rows:
            heads = self._restore(mixed[stream], order[stream])
            out[stream] = self.part("o_proj", stream)(heads.flatten(1))
        return out.get(STREAMS[0]), out.get(STREAMS[1])

    def _project(self, stream: str, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Rows to q (T, g, m, d), k and v (T, g, d); q and k normed over d, then rotated, in float32."""
        groups, per = len(self.groups[stream]), self.heads_per_group[stream]
        q = self.part("q_proj", stream)(x).view(-1, groups * per, self.head_dim)
        k = self.part("k_proj", stream)(x).view(-1, groups, self.head_dim)
        v = self.part("v_proj", stream)(x).view(-1, groups, self.head_dim)
        cos, sin = context.rope[stream]
        q = rotate(self.part("q_norm", stream)(q), cos, sin).to(v.dtype)
        k = rotate(self.part("k_norm", stream)(k), cos, sin).to(v.dtype)
        return q.view(-1, groups, per, self.head_dim), k, v

    @staticmethod
    def _pick(x: Tensor, picks: list[int]) -> Tensor:
        if picks == list(range(x.shape[1])):
            return x
        return x.index_select(1, tensor(picks, device=x.device))

    @staticmethod
    def _restore(parts: list[Tensor], order: list[int]) -> Tensor:
        """Head sets back into the order of the output projection's columns: (T, g, m, d)."""
        whole = parts[0] if len(parts) == 1 else cat(parts, dim=1)
        if order == sorted(order):
            return whole
        return whole.index_select(1, tensor(order, device=whole.device).argsort())


def _attend(
    query: Tensor, key: Tensor, value: Tensor, stream: str, presence: Presence, context: Context
) -> Tensor:
    """One stream's queries (T, g, m, d) over joint keys (B, P + N, g, d) -> (T, g, m, d)."""
    rows, groups, per, width = query.shape
    if rows == 0:
        return query
    packing = context.packing[stream]
    q = packing.pad(query.flatten(1, 2)).transpose(1, 2)
    k, v = key.transpose(1, 2), value.transpose(1, 2)
    out = functional.scaled_dot_product_attention(
        q, k, v, attn_mask=context.mask(stream, presence), enable_gqa=per > 1
    )
    return packing.unpad(out.transpose(1, 2)).view(rows, groups, per, width)
