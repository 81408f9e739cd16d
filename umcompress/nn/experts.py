"""A feed-forward split into experts, of which each token uses a few.

Shapes: T tokens, H hidden, E experts, k active, m width of one expert, S width of the shared expert.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umcompress.nn.dispatch import sort_by_expert, spread_linear, sum_linear

Weighting = Literal["one_plus_logit", "softmax"]


@dataclass(frozen=True)
class ExpertShape:
    """All that is needed to build the module, also on the meta device."""

    hidden: int
    experts: int
    active: int
    width: int
    producers: tuple[str, ...]
    consumer: str
    producer_bias: tuple[bool, ...]
    consumer_bias: bool
    shared_width: int = 0
    weighting: Weighting = "one_plus_logit"
    selector: bool = False


class StackedLinear(nn.Module):
    """The linears of all experts: weight (E, out, in), bias (E, out)."""

    def __init__(self, experts: int, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(experts, outputs)) if bias else None
        nn.init.normal_(self.weight, std=inputs**-0.5)


class SparseFeedForward(nn.Module):
    """x (..., H) -> (..., H): the sum of the k experts that the router picks for each token, weighted.

    `inner` is what the dense feed-forward does between its linears, channel by channel: it takes the
    outputs of the producers and gives the input of the consumer. `watcher`, when set, is called with the
    chosen experts (T, k) and the logits (T, E) of every forward.
    """

    watcher: Callable[[Tensor, Tensor], None] | None

    def __init__(self, shape: ExpertShape, inner: nn.Module) -> None:
        super().__init__()
        self.shape = shape
        self.inner = inner
        self.watcher = None
        self.gate = nn.Linear(shape.hidden, shape.experts, bias=False)
        nn.init.zeros_(self.gate.weight)
        if shape.selector:
            self.selector = nn.Linear(shape.hidden, shape.experts).requires_grad_(False)
            nn.init.zeros_(self.selector.weight)
            nn.init.zeros_(self.selector.bias)
        hidden, biases = shape.hidden, dict(zip(shape.producers, shape.producer_bias, strict=True))
        self.experts = nn.ModuleDict(
            {name: StackedLinear(shape.experts, hidden, shape.width, bias) for name, bias in biases.items()}
        )
        self.experts[shape.consumer] = StackedLinear(shape.experts, shape.width, hidden, bias=False)
        if shape.shared_width:
            self.shared_expert = nn.ModuleDict(
                {name: nn.Linear(hidden, shape.shared_width, bias=bias) for name, bias in biases.items()}
            )
            self.shared_expert[shape.consumer] = nn.Linear(shape.shared_width, hidden, bias=False)
        self.bias = nn.Parameter(torch.zeros(hidden)) if shape.consumer_bias else None

    def route(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (T, H) -> weights (T, k), chosen experts (T, k), logits (T, E)."""
        logits = self.gate(x)
        scores = logits.detach()
        if self.shape.selector:
            scores = scores + self.selector(x).detach()
        chosen = torch.topk(scores, self.shape.active, dim=-1).indices
        picked = logits.gather(-1, chosen)
        if self.shape.weighting == "softmax":
            return self.shape.active * F.softmax(picked, dim=-1), chosen, logits
        return 1 + picked, chosen, logits

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen, logits = self.route(flat)
        if self.watcher is not None:
            self.watcher(chosen, logits)
        out = self._routed(flat, weights, chosen)
        if self.shape.shared_width:
            out = out + self._shared(flat)
        if self.bias is not None:
            out = out + self.bias
        return out.reshape(x.shape)

    def _routed(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        order = sort_by_expert(chosen, self.shape.experts)
        linears = [self._stacked(name) for name in self.shape.producers]
        made = spread_linear(x, [linear.weight for linear in linears], order)
        biases = [linear.bias for linear in linears]
        made = tuple(
            out if bias is None else out + bias.index_select(0, order.expert)
            for out, bias in zip(made, biases, strict=True)
        )
        # The consumer is linear: weighting what goes in is cheaper than weighting what comes out.
        inner = self.inner(*made) * weights.reshape(-1, 1).index_select(0, order.pair)
        return sum_linear(inner, self._stacked(self.shape.consumer).weight, order)

    def _stacked(self, name: str) -> StackedLinear:
        linear = self.experts[name]
        assert isinstance(linear, StackedLinear)
        return linear

    def _shared(self, x: Tensor) -> Tensor:
        shared = self.shared_expert
        out: Tensor = shared[self.shape.consumer](self.inner(*(shared[name](x) for name in self.shape.producers)))
        return out

    def extra_repr(self) -> str:
        return f"{self.shape.active} of {self.shape.experts} experts of {self.shape.width} channels"
