"""The experts of BAGEL-MoE folders.  T rows, H hidden, E experts, k active.

Live rule: the k largest logits, weights `1 + logit`, the shared expert times `1 + gate_shared(x)`.  Legacy
rule: the k largest probabilities, weights 1 (their gradient goes to the probabilities), the shared expert as
it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from umcompress.models.bagel.config import ExpertLayer
from umcompress.rewrite.nn.experts import ExpertShape, SparseFeedForward

if TYPE_CHECKING:
    from umcompress.models.bagel.context import Context


class GatedSilu(nn.Module):
    """What a gated feed-forward does between its linears."""

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        return functional.silu(gate) * up


class BagelExperts(SparseFeedForward):
    """A feed-forward as the sparse fork of BAGEL stores it; `gate_img` routes vision rows of understanding."""

    def __init__(self, hidden: int, layer: ExpertLayer) -> None:
        shape = ExpertShape(
            hidden, layer.experts, layer.active, layer.width, ("gate_proj", "up_proj"), "down_proj",
            (False, False), False, shared_width=layer.shared_width,
        )  # fmt: skip
        super().__init__(shape, GatedSilu())
        self.layer = layer
        # The legacy block stores a gate that it never uses; so does the live one where nothing is shared.
        scale = "gate_shared" if layer.rule == "live" else "shared_expert_gate"
        self.add_module(scale, nn.Linear(hidden, 1, bias=False))
        if layer.routes_vision:
            self.gate_img = nn.Linear(hidden, layer.experts, bias=False)

    def route(self, x: Tensor, vision: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x (T, H), which rows are vision (T,) -> weights (T, k), chosen experts (T, k), logits (T, E)."""
        if self.layer.rule == "live" and (vision is None or not self.layer.routes_vision):
            return super().route(x)
        logits = self.gate(x)
        if self.layer.rule == "live":
            assert vision is not None
            logits = torch.where(vision[:, None], self.gate_img(x), logits)
            picked, chosen = torch.topk(logits, self.shape.active, dim=-1)
            return 1 + picked, chosen, logits
        probabilities = functional.softmax(logits.float(), dim=-1)
        picked, chosen = torch.topk(probabilities, self.shape.active, dim=-1)
        if self.layer.normalised:
            picked = picked / picked.sum(dim=-1, keepdim=True)
        return (picked - picked.detach() + 1).to(x.dtype), chosen, logits

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        """(T, H) -> (T, H)."""
        weights, chosen, logits = self.route(x, None if context is None else context.vision_rows)
        if self.watcher is not None:
            self.watcher(chosen, logits)
        out = self._routed(x, weights, chosen)
        if not self.shape.shared_width:
            return out
        shared = self._shared(x)
        if self.layer.rule == "live":
            shared = (1 + self.get_submodule("gate_shared")(x)) * shared
        return out + shared
