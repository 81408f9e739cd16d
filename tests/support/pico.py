"""Pico models for tests: a dual-stream block stack with a vision stack, and single-stream ones like Llama and OPT.

Shapes: U understanding rows, G generation rows, H hidden, g key-value groups, d head dim.
Awkward on purpose: grouped queries, tied embedding and head, biases in some linears only, a norm a head.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umcompress.checkpoint.fill import fill
from umcompress.graph.protocol import StreamLayout
from umcompress.models.bagel.config import BagelConfig
from umcompress.models.bagel.context import Cache
from umcompress.models.bagel.model import Bagel

M = TypeVar("M", bound=nn.Module)


class PicoAttention(nn.Module):
    """Joint attention: each stream's queries of a group see the keys of that group in every stream."""

    def __init__(
        self, hidden: int, components: tuple[str, ...], groups: int, per: int, dim: int, layer: int
    ) -> None:
        super().__init__()
        self.stream_components = components
        self.layer_idx = layer
        self.layouts: dict[str, StreamLayout] = {}
        self.groups: dict[str, tuple[int, ...]] = {}
        for i, component in enumerate(components):
            end = "" if i == 0 else f"_{component[:3]}"
            names = [f"{n}_proj{end}" for n in "qkvo"]
            norms = (f"q_norm{end}", f"k_norm{end}")
            for name, rows in zip(names, (groups * per * dim, groups * dim, groups * dim), strict=False):
                self.add_module(name, nn.Linear(hidden, rows, bias=True))
            self.add_module(names[3], nn.Linear(groups * per * dim, hidden, bias=False))
            for norm in norms:
                self.add_module(norm, nn.LayerNorm(dim))
            self.layouts[component] = StreamLayout(
                names[0], names[1], names[2], names[3], norms, groups, per, dim
            )
            self.groups[component] = tuple(range(groups))

    def stream(self, component: str) -> StreamLayout | None:
        return self.layouts.get(component)

    def keep_heads(
        self, component: str, key_value_groups: tuple[int, ...] | None, query_heads: tuple[int, ...] | None
    ) -> None:
        old = self.layouts[component]
        groups, per = old.key_value_groups, old.query_heads_per_group
        if key_value_groups is not None:
            groups = len(key_value_groups)
            self.groups[component] = tuple(self.groups[component][g] for g in key_value_groups)
        if query_heads is not None:
            per = len(query_heads) // groups
        self.layouts[component] = StreamLayout(
            old.query, old.key, old.value, old.output, old.norms, groups, per, old.head_dim
        )

    def drop_stream(self, component: str) -> None:
        layout = self.layouts.pop(component)
        del self.groups[component]
        for name in (layout.query, layout.key, layout.value, layout.output, *layout.norms):
            delattr(self, name)

    def forward(self, *args: object) -> Tensor | tuple[Tensor | None, ...]:
        heads: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        for component, x in zip(self.stream_components, args, strict=False):
            layout = self.layouts.get(component)
            if layout is None:
                assert x is None
                continue
            assert isinstance(x, Tensor)
            heads[component] = self._project(x, layout)
        outs = tuple(self._mix(component, heads) for component in self.stream_components)
        return outs[0] if len(outs) == 1 else outs  # type: ignore[return-value]

    def _project(self, x: Tensor, layout: StreamLayout) -> tuple[Tensor, Tensor, Tensor]:
        g, d = layout.key_value_groups, layout.head_dim
        q, k, v = (self.get_submodule(n)(x) for n in (layout.query, layout.key, layout.value))
        q_norm, k_norm = (self.get_submodule(n) for n in layout.norms)
        return q_norm(q.view(len(x), g, -1, d)), k_norm(k.view(len(x), g, d)), v.view(len(x), g, d)

    def _mix(self, component: str, heads: dict[str, tuple[Tensor, Tensor, Tensor]]) -> Tensor | None:
        if component not in heads:
            return None
        mixed = []
        for i, group in enumerate(self.groups[component]):
            q = heads[component][0][:, i].transpose(0, 1)
            seen = [(n, self.groups[n].index(group)) for n in heads if group in self.groups[n]]
            k = torch.cat([heads[n][1][:, j] for n, j in seen]).expand(q.shape[0], -1, -1)
            v = torch.cat([heads[n][2][:, j] for n, j in seen]).expand(q.shape[0], -1, -1)
            mixed.append(F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1))
        output: Tensor = self.get_submodule(self.layouts[component].output)(torch.cat(mixed, 1))
        return output


class GatedMLP(nn.Module):
    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class PicoDualBlock(nn.Module):
    def __init__(self, hidden: int, width: int, groups: int, per: int, layer: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(hidden)
        self.input_layernorm_gen = nn.LayerNorm(hidden)
        self.post_attention_layernorm = nn.LayerNorm(hidden)
        self.post_attention_layernorm_gen = nn.LayerNorm(hidden)
        self.self_attn = PicoAttention(hidden, ("understanding", "generation"), groups, per, 4, layer)
        self.mlp = GatedMLP(hidden, width)
        self.mlp_gen = GatedMLP(hidden, width + 2)

    def forward(self, und: Tensor, gen: Tensor, context: object) -> tuple[Tensor, Tensor]:
        a, b = self.self_attn(self.input_layernorm(und), self.input_layernorm_gen(gen), context)
        und = und + a
        gen = gen + b
        und = und + self.mlp(self.post_attention_layernorm(und))
        gen = gen + self.mlp_gen(self.post_attention_layernorm_gen(gen))
        return und, gen


class PlainMLP(nn.Module):
    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden, width)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class PicoBlock(nn.Module):
    """Single stream; `gated` chooses the feed-forward."""

    def __init__(self, hidden: int, width: int, groups: int, per: int, layer: int, gated: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden)
        self.self_attn = PicoAttention(hidden, ("understanding",), groups, per, 4, layer)
        self.norm2 = nn.LayerNorm(hidden)
        self.mlp = GatedMLP(hidden, width) if gated else PlainMLP(hidden, width)

    def forward(self, hidden: Tensor, context: object) -> Tensor:
        hidden = hidden + self.self_attn(self.norm1(hidden), context)
        hidden = hidden + self.mlp(self.norm2(hidden))
        return hidden  # noqa: RET504


class PicoPlainBlock(nn.Module):
    """Single stream; the feed-forward's linears, with biases, lie in the block itself, a dropout between them."""

    def __init__(self, hidden: int, width: int, groups: int, per: int, layer: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden)
        self.self_attn = PicoAttention(hidden, ("understanding",), groups, per, 4, layer)
        self.norm2 = nn.LayerNorm(hidden)
        self.act = nn.GELU(approximate="tanh")
        self.fc1 = nn.Linear(hidden, width)
        self.fc2 = nn.Linear(width, hidden)

    def forward(self, hidden: Tensor, context: object) -> Tensor:
        hidden = hidden + self.self_attn(self.norm1(hidden), context)
        inner = F.dropout(self.act(self.fc1(self.norm2(hidden))), p=0.5, training=self.training)
        out: Tensor = hidden + self.fc2(inner)
        return out


class PicoUnified(nn.Module):
    """Pixels through the vision stack join the text rows; generation rows are a stream of their own."""

    def __init__(self, hidden: int = 12, width: int = 10, groups: int = 2, per: int = 2, depth: int = 3):
        super().__init__()
        self.embed = nn.Embedding(16, hidden)
        self.vision = nn.ModuleList(PicoBlock(hidden, width, 3, 1, i, False) for i in range(2))
        self.layers = nn.ModuleList(PicoDualBlock(hidden, width, groups, per, i) for i in range(depth))
        self.head = nn.Linear(hidden, 16, bias=False)
        self.head.weight = self.embed.weight
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, ids: Tensor, pixels: Tensor, latent: Tensor) -> tuple[Tensor, Tensor]:
        seen = pixels
        for block in self.vision:
            seen = block(seen, None)
        und, gen = torch.cat([self.embed(ids), seen]), latent * self.scale
        for block in self.layers:
            und, gen = block(und, gen, None)
        return self.head(und), gen


class PicoText(nn.Module):
    """Single stream: everything is understanding. `plain`: like OPT, otherwise like Llama."""

    def __init__(
        self, hidden: int = 12, width: int = 9, groups: int = 2, per: int = 3, depth: int = 3, plain: bool = False
    ):
        super().__init__()
        self.embed = nn.Embedding(16, hidden)
        sizes = (hidden, width, groups, per)
        self.layers = nn.ModuleList(
            PicoPlainBlock(*sizes, i) if plain else PicoBlock(*sizes, i, True) for i in range(depth)
        )
        self.norm = nn.LayerNorm(hidden)

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.embed(ids)
        for block in self.layers:
            x = block(x, None)
        out: Tensor = self.norm(x)
        return out


class PicoFamily:
    """What a graph cannot know of the pico models."""

    name = "pico"
    main_stack = "decoder"

    def stacks(self, model: nn.Module) -> dict[str, str]:
        vision = {"vision": "vision"} if hasattr(model, "vision") else {}
        return {"decoder": "layers"} | vision

    def component_of(self, path: str) -> str:
        if path.startswith(("layers", "vision")):
            return "generation" if "_gen" in path else "understanding"
        return "shared"

    def skeleton(self, folder: Path) -> nn.Module:
        kind = json.loads((folder / "config.json").read_text())["kind"]
        with torch.device("meta"):
            model: nn.Module = MODELS[kind][0]()
        if isinstance(model, PicoUnified):
            model.scale = torch.tensor(0.5)
        return model.eval()

    def weight_files(self, model: nn.Module) -> dict[str, dict[str, str]]:
        """Vision weights in a file of their own, where their names have no prefix."""
        names = list(model.state_dict())
        vision = {n.removeprefix("vision."): n for n in names if n.startswith("vision.")}
        rest = {n: n for n in names if not n.startswith("vision.")}
        return {"model.safetensors": rest} | ({"vision.safetensors": vision} if vision else {})

    def plain(self, *_: object) -> str:
        return ""

    def fill(self, model: nn.Module, folder: Path, dtype: torch.dtype, device: str) -> None:
        fill(model, folder, self.weight_files(model), dtype, device)


def write_config(model: nn.Module, folder: Path) -> None:
    kind = "unified" if isinstance(model, PicoUnified) else "text"
    if any(isinstance(module, PicoPlainBlock) for module in model.modules()):
        kind = "plain"
    (folder / "config.json").write_text(json.dumps({"kind": kind}))


def unified(seed: int = 0, **sizes: int) -> PicoUnified:
    """Weights are spread so that no branch is small beside the stream."""
    return spread(PicoUnified(**sizes), seed)


def text(seed: int = 0, **sizes: Any) -> PicoText:
    return spread(PicoText(**sizes), seed)


def plain(seed: int = 0, **sizes: int) -> PicoText:
    return spread(PicoText(**sizes, plain=True), seed)


def spread(model: M, seed: int) -> M:
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if not parameter.is_meta:
            parameter.data = torch.randn(parameter.shape, generator=draw) * 0.4
    return model.eval()


def unified_inputs(seed: int = 1, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randn(3, 12, generator=draw).to(dtype)
    return torch.arange(5), pixels, torch.randn(4, 12, generator=draw).to(dtype)


def text_inputs(seed: int = 1, dtype: torch.dtype = torch.float32) -> tuple[Tensor]:
    return (torch.randint(16, (6,), generator=torch.Generator().manual_seed(seed)),)


FAMILY = PicoFamily()
MODELS = {
    "unified": (unified, unified_inputs),
    "text": (text, text_inputs),
    "plain": (plain, text_inputs),
}


def pico_bagel(seed: int = 0) -> nn.Module:
    """The real BAGEL class at a toy size (under 0.1 M parameters), with random weights."""
    return spread(Bagel(_bagel_config()), seed)


def _bagel_config() -> BagelConfig:
    sizes = {"num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 20}
    return BagelConfig.model_validate(
        {
            "text": {"hidden_size": 16, "num_key_value_heads": 2, "vocab_size": 32, **sizes},
            "vision": {"hidden_size": 12, "patch_size": 2, "image_size": 8, **sizes},
            "autoencoder": {"ch": 32, "ch_mult": (1,), "num_res_blocks": 1, "z_channels": 2},
            "tokens": {"bos_token_id": 0, "eos_token_id": 1, "start_of_image": 2, "end_of_image": 3},
            "max_latent_size": 4,
            "vit_max_num_patch_per_side": 4,
        }
    )


def write_bagel_config(folder: Path) -> None:
    """The JSON files from which the skeleton of `pico_bagel` is built."""
    config = _bagel_config().model_dump(mode="json")
    (folder / "llm_config.json").write_text(json.dumps(config.pop("text")))
    (folder / "vit_config.json").write_text(json.dumps(config.pop("vision")))
    (folder / "extra.json").write_text(json.dumps(config))


@torch.no_grad()
def bagel_outputs(model: nn.Module) -> tuple[Tensor, ...]:
    """Through the cache: text, a picture, more text in chunks; then a velocity of 4 latent tokens."""
    assert isinstance(model, Bagel)
    draw = torch.Generator().manual_seed(3)
    cache = Cache(1)
    first, _ = model.absorb_text(cache, [torch.tensor([4, 5, 6])])
    seen, _ = model.absorb_vision(cache, [torch.rand(3, 4, 6, generator=draw) * 2 - 1])
    second, _ = model.absorb_text(cache, [torch.tensor([7, 8])], wrap=False)
    third, _ = model.absorb_text(cache, [torch.tensor([9])], wrap=False)
    tokens = torch.randn(4, model.config.latent_channels, generator=draw)
    velocity = model.velocity(cache, tokens, 0.4, [(2, 2)])
    return model.logits(first), seen, model.logits(second), model.logits(third), velocity


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """The files of a folder, at any depth: relative path -> content."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
