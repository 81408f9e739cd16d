"""An independent account of what edits mean: the unedited model in float64, masked; no graph, no slicing.

It keeps the original block, group, head and channel numbers of everything that is left, and computes each
block with plain formulas. Experts that are all active behind a router of zeros are the dense feed-forward.
"""

from __future__ import annotations

from typing import Any

import torch
from pico import GatedMLP, PicoAttention, PicoUnified
from torch import Tensor, nn
from torch.nn import functional as F

from umcompress.documents.plan import DropBlock, DropBranch, KeepChannels, KeepHeads, Plan, SplitExperts

COMPONENTS = ("understanding", "generation")


class Masked:
    """What is left of a pico model. Keys of the tables: (original path of the block, component)."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.double()
        stacks = {s: getattr(model, s, nn.ModuleList()) for s in ("vision", "layers")}
        self.stacks = {stack: list(range(len(blocks))) for stack, blocks in stacks.items()}
        self.groups: dict[tuple[str, str], list[int]] = {}
        self.heads: dict[tuple[str, str], list[tuple[int, int]]] = {}
        self.channels: dict[tuple[str, str], list[int]] = {}
        for stack, blocks in self.stacks.items():
            for i in blocks:
                self._whole(f"{stack}.{i}")

    def _whole(self, path: str) -> None:
        block = self.model.get_submodule(path)
        attention = block.self_attn
        assert isinstance(attention, PicoAttention)
        for component in attention.stream_components:
            layout = attention.layouts[component]
            g, m = layout.key_value_groups, layout.query_heads_per_group
            self.groups[path, component] = list(range(g))
            self.heads[path, component] = [(i, j) for i in range(g) for j in range(m)]
            mlp: Any = block.mlp_gen if component == "generation" else getattr(block, "mlp", block)
            last = mlp.down_proj if isinstance(mlp, GatedMLP) else mlp.fc2
            self.channels[path, component] = list(range(last.in_features))

    def apply(self, plan: Plan) -> None:
        before = {
            f"{s}.{i}": f"{s}.{old}" for s, blocks in self.stacks.items() for i, old in enumerate(blocks)
        }
        for edit in plan.edits:
            if isinstance(edit, DropBlock):
                self._drop_block(before[edit.block])
            elif isinstance(edit, DropBranch):
                self._drop(before[edit.block], edit.component, edit.branch)
            elif isinstance(edit, KeepHeads):
                path, _, _ = edit.site.rpartition(".")
                self._keep_heads(before[path], edit)
            elif isinstance(edit, KeepChannels):
                path, _, mlp = edit.site.rpartition(".")
                key = before[path], "generation" if mlp == "mlp_gen" else "understanding"
                self.channels[key] = [self.channels[key][i] for i in edit.keep]
            elif isinstance(edit, SplitExperts):
                assert edit.active == len(edit.experts)
        for stack, blocks in self.stacks.items():
            self.stacks[stack] = [i for i in blocks if not self._hollow(f"{stack}.{i}")]

    def _drop(self, path: str, component: str, branch: str) -> None:
        if branch == "attention":
            self.groups[path, component] = []
            self.heads[path, component] = []
        else:
            self.channels[path, component] = []

    def _drop_block(self, path: str) -> None:
        for key in [key for key in self.groups if key[0] == path]:
            self._drop(*key, "attention")
            self._drop(*key, "feed_forward")

    def _hollow(self, path: str) -> bool:
        return not any(self.heads.get((path, c)) or self.channels.get((path, c)) for c in COMPONENTS)

    def _keep_heads(self, path: str, edit: KeepHeads) -> None:
        key = path, edit.component
        if edit.key_value_groups is not None:
            kept = [self.groups[key][i] for i in edit.key_value_groups]
            self.groups[key] = kept
            self.heads[key] = [head for head in self.heads[key] if head[0] in kept]
        else:
            self.heads[key] = [self.heads[key][i] for i in edit.query_heads or ()]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        if isinstance(model, PicoUnified):
            ids, pixels, latent = inputs
            for i in self.stacks["vision"]:
                (pixels,) = self._block(f"vision.{i}", {"understanding": pixels}).values()
            rows = {
                "understanding": torch.cat([model.embed(ids), pixels]),
                "generation": latent * model.scale,
            }
            for i in self.stacks["layers"]:
                rows = self._block(f"layers.{i}", rows)
            return model.head(rows["understanding"]), rows["generation"]
        rows = {"understanding": model.get_submodule("embed")(inputs[0])}
        for i in self.stacks["layers"]:
            rows = self._block(f"layers.{i}", rows)
        return (model.get_submodule("norm")(rows["understanding"]),)

    def _block(self, path: str, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        block = self.model.get_submodule(path)
        rows = self._attention(path, block, rows)
        done = {}
        for component, x in rows.items():
            end = "_gen" if component == "generation" else ""
            mlp = block.get_submodule(f"mlp{end}") if hasattr(block, f"mlp{end}") else block
            norm: Any = (
                block.norm2
                if hasattr(block, "norm2")
                else block.get_submodule(f"post_attention_layernorm{end}")
            )
            kept = self.channels[path, component]
            done[component] = x + self._feed_forward(mlp, norm(x), kept) if kept else x
        return done

    @staticmethod
    def _feed_forward(mlp: Any, x: Tensor, kept: list[int]) -> Tensor:
        if isinstance(mlp, GatedMLP):
            inner, last = F.silu(mlp.gate_proj(x)) * mlp.up_proj(x), mlp.down_proj
        else:
            inner, last = F.gelu(mlp.fc1(x), approximate="tanh"), mlp.fc2
        mask = torch.zeros(inner.shape[-1], dtype=inner.dtype)
        mask[kept] = 1
        out: Tensor = last(inner * mask)
        return out

    def _attention(self, path: str, block: Any, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        attention = block.self_attn
        assert isinstance(attention, PicoAttention)
        q, k, v = {}, {}, {}
        for component, x in rows.items():
            end = "_gen" if component == "generation" else ""
            norm = block.norm1 if hasattr(block, "norm1") else block.get_submodule(f"input_layernorm{end}")
            names = ("q_proj", "k_proj", "v_proj", "q_norm", "k_norm")
            parts = [attention.get_submodule(f"{n}{end}") for n in names]
            y = norm(x)
            q[component] = parts[3](parts[0](y).view(len(x), -1, 4))
            k[component] = parts[4](parts[1](y).view(len(x), -1, 4))
            v[component] = parts[2](y).view(len(x), -1, 4)
        done = {}
        for component, x in rows.items():
            per = attention.layouts[component].query_heads_per_group
            mixed = torch.zeros_like(q[component])
            for g, j in self.heads[path, component]:
                seen = [c for c in rows if g in self.groups[path, c]]
                keys, values = torch.cat([k[c][:, g] for c in seen]), torch.cat([v[c][:, g] for c in seen])
                weights = torch.softmax(q[component][:, g * per + j] @ keys.T / 2.0, -1)
                mixed[:, g * per + j] = weights @ values
            last = attention.get_submodule(attention.layouts[component].output)
            done[component] = x + last(mixed.flatten(1))
        return done
