"""Experts of a feed-forward as other programs' models hold them: built from what a folder says, and nothing else.

Their linears have shorter names than in our models: programs that join the `gate_proj` and `up_proj` of a dense
feed-forward would take those of experts for such.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from umcompress.models.bagel.experts import BagelExperts, GatedSilu
from umcompress.rewrite.nn.experts import ExpertShape, SparseFeedForward

_LINEAR = re.compile(r"\.(experts|shared_expert)\.(gate|up|down)_proj\.")


class ServedExperts(SparseFeedForward):
    """said: what `described` gives, numbers and flags.  (T, H) -> (T, H)."""

    def __init__(self, hidden: int, said: dict[str, Any]) -> None:
        shape = ExpertShape(
            hidden, said["experts"], said["active"], said["width"], ("gate", "up"), "down", (False, False),
            said["bias"], shared_width=said["shared_width"], weighting=said["weighting"], selector=said["selector"],
        )  # fmt: skip
        super().__init__(shape, GatedSilu())
        # Of BAGEL-MoE folders: each token's own scale of what all tokens share.
        self.gate_shared = nn.Linear(hidden, 1, bias=False) if said["scales_shared"] else None

    def _shared(self, x: Tensor) -> Tensor:
        shared = super()._shared(x)
        return shared if self.gate_shared is None else (1 + self.gate_shared(x)) * shared


def described(module: SparseFeedForward) -> dict[str, Any] | str:
    """What `ServedExperts` is built from; in words, what it cannot be."""
    shape = module.shape
    if isinstance(module, BagelExperts) and module.layer.rule == "legacy":
        return "experts follow the legacy rule of BAGEL-MoE"
    if isinstance(module, BagelExperts) and module.layer.routes_vision:
        return "rows of pictures have a router of their own (gate_img), and other programs do not say which those are"
    return {
        "experts": shape.experts, "active": shape.active, "width": shape.width, "shared_width": shape.shared_width,
        "weighting": shape.weighting, "selector": shape.selector, "bias": module.bias is not None,
        "scales_shared": hasattr(module, "gate_shared"),
    }  # fmt: skip


def name_in_folder(name: str) -> str:
    """A tensor of our model as `ServedExperts` calls it; what is of no experts keeps its name."""
    return _LINEAR.sub(r".\1.\2.", name)
