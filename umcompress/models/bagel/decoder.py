"""The BAGEL decoder: Qwen2 with dual weights, written as two streams that meet in the attention."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from umcompress.models.bagel.attention import BagelAttention
from umcompress.models.bagel.config import ExpertLayer, TextConfig
from umcompress.models.bagel.context import Context
from umcompress.models.bagel.experts import BagelExperts
from umcompress.models.bagel.layers import GatedMLP, RMSNorm


class BagelBlock(nn.Module):
    """Text, vision and marker rows go through the plain weights, latent rows through the `_moe_gen` ones."""

    def __init__(self, config: TextConfig, layer_idx: int, experts: Sequence[ExpertLayer] = ()) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        split = {layer.component: layer for layer in experts if layer.layer == layer_idx}
        self.self_attn = BagelAttention(config, layer_idx)
        self.mlp = _feed_forward(config, split.get("understanding"))
        self.mlp_moe_gen = _feed_forward(config, split.get("generation"))
        self.input_layernorm = RMSNorm(hidden, eps)
        self.input_layernorm_moe_gen = RMSNorm(hidden, eps)
        self.post_attention_layernorm = RMSNorm(hidden, eps)
        self.post_attention_layernorm_moe_gen = RMSNorm(hidden, eps)

    def forward(self, und: Tensor, gen: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """(U, H) and (G, H) -> the same shapes."""
        und_attention, gen_attention = self.self_attn(
            self.input_layernorm(und), self.input_layernorm_moe_gen(gen), context
        )
        und = und + und_attention
        gen = gen + gen_attention
        normed = self.post_attention_layernorm(und)
        und = und + (self.mlp(normed, context) if isinstance(self.mlp, BagelExperts) else self.mlp(normed))
        gen = gen + self.mlp_moe_gen(self.post_attention_layernorm_moe_gen(gen))
        return und, gen


def _feed_forward(config: TextConfig, experts: ExpertLayer | None) -> nn.Module:
    if experts is None:
        return GatedMLP(config.hidden_size, config.intermediate_size)
    return BagelExperts(config.hidden_size, experts)


class Decoder(nn.Module):
    """Embedding, blocks, and a final norm a stream."""

    def __init__(self, config: TextConfig, experts: Sequence[ExpertLayer] = ()) -> None:
        super().__init__()
        self.theta, self.head_dim = config.rope_theta, config.head_dim
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(BagelBlock(config, i, experts) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.norm_moe_gen = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, und: Tensor, gen: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Embedded rows (U, H), (G, H) -> final-normed rows; appends to the context's cache if it says so."""
        context.prepare_rope(self.theta, self.head_dim)
        for layer in self.layers:
            und, gen = layer(und, gen, context)
        return self.norm(und), self.norm_moe_gen(gen)


class LanguageModel(nn.Module):
    """The decoder and its head, named as in the checkpoint."""

    def __init__(self, config: TextConfig, experts: Sequence[ExpertLayer] = ()) -> None:
        super().__init__()
        self.model = Decoder(config, experts)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, und: Tensor, gen: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        out: tuple[Tensor, Tensor] = self.model(und, gen, context)
        return out
