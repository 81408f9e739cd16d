"""SigLIP-NaViT: images of any size as packed patches.  R patches in all, Hv width."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from umcompress.graph.protocol import StreamLayout
from umcompress.models.bagel.config import VisionConfig
from umcompress.models.bagel.packing import Packing, packing_cpu


class VisionContext:
    """Which patches belong to one image; patches of different images never see each other."""

    def __init__(self, packing: Packing) -> None:
        self.packing = packing
        self.mask: Tensor | None = None
        if not packing.uniform:
            valid = packing_cpu(packing).valid
            self.mask = (valid[:, None, None, :] | ~valid[:, None, :, None]).to(packing.device)


class VisionAttention(nn.Module):
    """Full attention inside each image; every projection has a bias."""

    stream_components = ("understanding",)

    def __init__(self, config: VisionConfig, layer_idx: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.layer_idx = layer_idx
        self.heads = config.num_attention_heads
        self.head_dim = width // config.num_attention_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def stream(self, component: str) -> StreamLayout | None:
        """The layout of the only stream."""
        if component != "understanding":
            return None
        return StreamLayout(
            query="q_proj", key="k_proj", value="v_proj", output="out_proj", norms=(),
            key_value_groups=self.heads, query_heads_per_group=1, head_dim=self.head_dim,
        )

    def keep_heads(
        self, component: str, key_value_groups: tuple[int, ...] | None, query_heads: tuple[int, ...] | None
    ) -> None:
        """Book-keeping of a head cut; a group is one head here."""
        kept = key_value_groups if key_value_groups is not None else query_heads
        assert kept is not None
        self.heads = len(kept)

    def drop_stream(self, component: str) -> None:
        """Delete everything: the only stream is gone."""
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            delattr(self, name)

    def forward(self, hidden: Tensor, context: VisionContext) -> Tensor:
        """(R, Hv) -> (R, Hv)."""
        shape = (-1, self.heads, self.head_dim)
        q, k, v = (
            context.packing.pad(project(hidden).view(shape)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=context.mask)
        out: Tensor = self.out_proj(context.packing.unpad(mixed.transpose(1, 2)).flatten(1))
        return out


class VisionMLP(nn.Module):
    """fc1, tanh-GELU, fc2."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden, width)
        self.fc2 = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))
        return out


class VisionBlock(nn.Module):
    """Pre-norm encoder block."""

    def __init__(self, config: VisionConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = VisionAttention(config, layer_idx)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VisionMLP(config.hidden_size, config.intermediate_size)

    def forward(self, hidden: Tensor, context: VisionContext) -> Tensor:
        hidden = hidden + self.self_attn(self.layer_norm1(hidden), context)
        out: Tensor = hidden + self.mlp(self.layer_norm2(hidden))
        return out


class VisionEmbeddings(nn.Module):
    """Linear patch embedding (features ordered dy, dx, channel) and a learned position table."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(3 * config.patch_size**2, config.hidden_size)
        side = config.image_size // config.patch_size
        self.position_embedding = nn.Embedding(side * side, config.hidden_size)

    def forward(self, patches: Tensor, ids: Tensor) -> Tensor:
        out: Tensor = self.patch_embedding(patches) + self.position_embedding(ids)
        return out


class VisionEncoder(nn.Module):
    """The stack of blocks."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionBlock(config, i) for i in range(config.layers_used))


class VisionTransformer(nn.Module):
    """Embeddings, encoder, final norm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.encoder = VisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, patches: Tensor, ids: Tensor, context: VisionContext) -> Tensor:
        hidden = self.embeddings(patches, ids)
        for layer in self.encoder.layers:
            hidden = layer(hidden, context)
        out: Tensor = self.post_layernorm(hidden)
        return out


class VisionModel(nn.Module):
    """The tower under the name that the checkpoint gives it."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.vision_model = VisionTransformer(config)

    def forward(self, patches: Tensor, ids: Tensor, context: VisionContext) -> Tensor:
        """patches (R, 3*P*P), ids (R,) -> (R, Hv)."""
        out: Tensor = self.vision_model(patches, ids, context)
        return out
