"""A feed-forward split into experts, of which each token uses a few.

Shapes: T tokens, H hidden, E experts, k active, m width of one expert, S width of the shared expert.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umcompress.rewrite.nn.cpu import ONEDNN_IS_FASTER, linear_product, one_token_products, one_token_sum
from umcompress.rewrite.nn.dispatch import sort_by_expert, spread_linear, sum_linear

Weighting = Literal["one_plus_logit", "softmax"]


@dataclass(frozen=True)
class ExpertShape:
    """The sizes and names from which the module is built, also on the meta device.

    A producer that is named k times gives k equal parts of its rows, in their order.
    """

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

    @property
    def first(self) -> tuple[str, ...]:
        """The names of the producers, without repetition."""
        return tuple(dict.fromkeys(self.producers))


# Experts of fewer channels than this, and groups of fewer rows, are multiplied so slowly that all experts at once cost
# less, where no fewer than a third of them run (benchmarks/moe_forward.py). oneDNN is slow with few rows, MKL is not.
# Rules and not measurements of this machine: a model that is loaded again must compute the same bits.
THIN, LEAST_SHARE = 40, 1 / 3
FEW_ROWS = 20 if ONEDNN_IS_FASTER else 0
# Up to so many tokens a copy of the consumer costs more than one product gains over one for each expert.
FEW_TOKENS = 64


def all_at_once_is_faster(shape: ExpertShape, tokens: int) -> bool:
    """Whether products of all experts cost less than small ones of those that were chosen."""
    rows = tokens * shape.active / shape.experts
    return shape.active / shape.experts >= LEAST_SHARE and (shape.width < THIN or 1 < rows < FEW_ROWS)


def _plain_linear(linear: nn.Module, x: Tensor) -> Tensor:
    """A linear of a shared expert by the product that the others have; where it is watched, by itself."""
    if type(linear) is not nn.Linear or linear._forward_hooks or linear._forward_pre_hooks:
        watched: Tensor = linear(x)
        return watched
    out = linear_product(x, linear.weight)
    return out if linear.bias is None else out + linear.bias


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
    outputs of the producers, each once, and gives the input of the consumer. `watcher`, when set, is called with the
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
        parts = Counter(shape.producers)
        self.experts = nn.ModuleDict(
            {n: StackedLinear(shape.experts, hidden, parts[n] * shape.width, bias) for n, bias in biases.items()}
        )
        self.experts[shape.consumer] = StackedLinear(shape.experts, shape.width, hidden, bias=False)
        if shape.shared_width:
            self.shared_expert = nn.ModuleDict(
                {n: nn.Linear(hidden, parts[n] * shape.shared_width, bias=bias) for n, bias in biases.items()}
            )
            self.shared_expert[shape.consumer] = nn.Linear(shape.shared_width, hidden, bias=False)
        self.bias = nn.Parameter(torch.zeros(hidden)) if shape.consumer_bias else None

    def route(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (T, H) -> weights (T, k), chosen experts (T, k), logits (T, E)."""
        logits = self.gate(x)
        if self.shape.selector:
            chosen = torch.topk((logits + self.selector(x)).detach(), self.shape.active, dim=-1).indices
            picked = logits.gather(-1, chosen)
        else:
            picked, chosen = torch.topk(logits, self.shape.active, dim=-1)
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
        if not len(x) and not torch.is_grad_enabled():
            # One of two streams is often empty; sorting nothing takes as long as sorting a little.
            return torch.zeros_like(x)
        if self._is_plain(x):
            if x.shape[0] == 1:
                return self._decode(x, weights, chosen)
            if all_at_once_is_faster(self.shape, x.shape[0]):
                return self._all_at_once(x, weights, chosen)
        order = sort_by_expert(chosen, self.shape.experts)
        linears = [self._stacked(name) for name in self.shape.first]
        made = spread_linear(x, [linear.weight for linear in linears], order)
        # The consumer is linear: weighting what goes in is cheaper than weighting what comes out.
        inner = self._inner(made, order.expert) * weights.reshape(-1, 1).index_select(0, order.pair)
        return sum_linear(inner, self._stacked(self.shape.consumer).weight, order)

    def _inner(self, made: Sequence[Tensor], expert: Tensor) -> Tensor:
        """Compute the consumer's input from the producers' outputs (without bias) of rows of these experts."""
        biases = [self._stacked(name).bias for name in self.shape.first]
        out: Tensor = self.inner(
            *(
                rows if bias is None else rows + bias.index_select(0, expert)
                for rows, bias in zip(made, biases, strict=True)
            )
        )
        return out

    def _is_plain(self, x: Tensor) -> bool:
        """Whether this runs on a CPU, without gradients or compilation: then there are ways without sorting."""
        if not x.is_cpu or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return False
        return type(x) is Tensor and not torch.compiler.is_compiling()

    def _decode(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        numbers = chosen[0].tolist()
        names, consumer = self.shape.first, self._stacked(self.shape.consumer).weight
        made = [one_token_products(x[0], self._stacked(name).weight, numbers) for name in names]
        return one_token_sum(self._inner(made, chosen[0]) * weights.mT, consumer, numbers)[None]

    def _all_at_once(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """All experts of every token in whole products; those that were not chosen weigh nothing."""
        tokens, experts = x.shape[0], self.shape.experts
        scale = weights.new_zeros(tokens, experts).scatter_(1, chosen, weights)
        made = []
        for name in self.shape.first:
            linear = self._stacked(name)
            rows = linear_product(x, linear.weight.flatten(0, 1)).view(tokens, experts, -1)
            made.append((rows if linear.bias is None else rows + linear.bias).flatten(0, 1))
        inner = (self.inner(*made) * scale.view(-1, 1)).view(tokens, experts, -1)
        weight = self._stacked(self.shape.consumer).weight
        if tokens < FEW_TOKENS:
            return torch.bmm(inner.transpose(0, 1), weight.mT).sum(0)
        # (E, H, m) -> (H, E m): copying costs less than products of so few channels.
        return linear_product(inner.flatten(1), weight.transpose(0, 1).flatten(1))

    def _stacked(self, name: str) -> StackedLinear:
        linear = self.experts[name]
        assert isinstance(linear, StackedLinear)
        return linear

    def _shared(self, x: Tensor) -> Tensor:
        shared = self.shared_expert
        if not self._is_plain(x):
            out: Tensor = shared[self.shape.consumer](self.inner(*(shared[name](x) for name in self.shape.first)))
            return out
        made = [_plain_linear(shared[name], x) for name in self.shape.first]
        return _plain_linear(shared[self.shape.consumer], self.inner(*made))

    def extra_repr(self) -> str:
        return f"{self.shape.active} of {self.shape.experts} experts of {self.shape.width} channels"
