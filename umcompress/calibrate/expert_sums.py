"""Accumulators over the tokens of a feed-forward that is to be split into experts.

Shapes: T tokens of one call, H hidden, I channels, E experts of m channels each.  x (T, H) enters the
feed-forward, h (T, I) its consumer W (H, I).  Sums are float64; those of size I^2 float32 where I is above
WIDE, where float64 would be 3 GB and more a site and every entry adds up at most a few thousand products of
whole calls.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from umcompress.calibrate.declare import WIDE, Routing
from umcompress.calibrate.observers import ROWS
from umcompress.calibrate.statistics import Contributions, Routed, Samples


class InputAndChannels:
    """Pairs the input x and the channels h of one forward: x is observed first."""

    def __init__(self, add: Callable[[Tensor, Tensor], None]) -> None:
        self.add = add
        self.inputs: Tensor | None = None

    def enter(self, x: Tensor) -> None:
        self.inputs = x.detach().reshape(-1, x.shape[-1])

    def inner(self, h: Tensor) -> None:
        assert self.inputs is not None
        x, self.inputs = self.inputs, None
        rows = h.detach().reshape(-1, h.shape[-1])
        for start in range(0, len(rows), ROWS):
            self.add(x[start : start + ROWS], rows[start : start + ROWS])


class SampleDraw:
    """A uniform sample of tokens from a stream of unknown length: those with the highest random keys."""

    def __init__(self, tokens: int, seed: int) -> None:
        self.tokens = tokens
        self.draw = np.random.default_rng(seed)
        self.keys = torch.empty(0, dtype=torch.float64)
        self.inputs = self.channels = torch.empty(0)

    def add(self, x: Tensor, h: Tensor) -> None:
        held = len(self.keys)
        keys = torch.cat([self.keys, torch.from_numpy(self.draw.random(len(h)))])
        stays = torch.zeros(len(keys), dtype=torch.bool)
        stays[torch.topk(keys, min(self.tokens, len(keys))).indices] = True
        new, free = stays[held:].nonzero().flatten(), (~stays[:held]).nonzero().flatten()
        if len(new) == 0:
            return
        rows = new.to(h.device)
        fresh, more = new[: len(free)] + held, new[len(free) :] + held
        self.keys[free] = keys[fresh]
        self.keys = torch.cat([self.keys, keys[more]])
        self.inputs = _placed(self.inputs, free, x[rows].cpu())
        self.channels = _placed(self.channels, free, h[rows].cpu())

    def result(self) -> Samples:
        return Samples(self.inputs, self.channels, len(self.inputs))


def _placed(held: Tensor, free: Tensor, rows: Tensor) -> Tensor:
    """Put `rows` into the free places of `held`, and append the rest."""
    if len(held) == 0:
        return rows
    held[free] = rows[: len(free)]
    return torch.cat([held, rows[len(free) :]])


class ContributionSum:
    """Sums of x1 x1', x1 N' and N^2.  With W_e = Q R the norm of W_e h is that of R h, and R is the smaller."""

    def __init__(self, weight: Tensor, routing: Routing) -> None:
        w = weight.detach().double()
        self.experts = [torch.tensor(expert, device=w.device) for expert in routing.experts]
        self.factors = [torch.linalg.qr(w[:, expert], mode="r").R for expert in self.experts]
        size, count = len(w) + 1, len(self.experts)
        self.second, self.cross, self.square = w.new_zeros(size, size), w.new_zeros(size, count), w.new_zeros(count)
        self.tokens = 0

    def add(self, x: Tensor, h: Tensor) -> None:
        inner = h.double()
        norms = torch.stack(
            [(inner[:, e] @ r.T).norm(dim=1) for e, r in zip(self.experts, self.factors, strict=True)], dim=1
        )
        one = torch.ones(len(x), 1, dtype=torch.float64, device=x.device)
        rows = torch.cat([x.double(), one], dim=1)
        self.second.addmm_(rows.T, rows)
        self.cross.addmm_(rows.T, norms)
        self.square += norms.square().sum(0)
        self.tokens += len(rows)

    def result(self) -> Contributions:
        count = max(self.tokens, 1)
        second, cross, square = ((total / count).cpu() for total in (self.second, self.cross, self.square))
        return Contributions(second, cross, square, self.tokens)


class RoutedSum:
    """Sums of g g', r g' and their like, with the experts chosen as the split model will choose them."""

    def __init__(self, weight: Tensor, routing: Routing) -> None:
        self.routing = routing
        hidden, width = weight.shape
        self.dtype = torch.float32 if width > WIDE else torch.float64
        self.weight = weight.detach().to(self.dtype)
        self.expert_of = torch.full((width,), len(routing.experts), device=weight.device)
        for number, expert in enumerate(routing.experts):
            self.expert_of[list(expert)] = number
        self.second = self.weight.new_zeros(width, width)
        self.cross = self.weight.new_zeros(hidden, width)
        double = weight.new_zeros(0, dtype=torch.float64)
        self.mean, self.lost = double.new_zeros(width), double.new_zeros(hidden)
        self.load = double.new_zeros(len(routing.experts))
        self.lost_square = self.output_square = 0.0
        self.tokens = 0

    def add(self, x: Tensor, h: Tensor) -> None:
        chosen = choose(self.routing, x)
        # A last column that is always on stands for the channels that no expert owns.
        on = torch.zeros(len(x), len(self.load) + 1, dtype=torch.bool, device=x.device)
        on.scatter_(1, chosen, True)[:, -1] = True
        inner = h.to(self.dtype)
        left = inner * on[:, self.expert_of]
        missing = (inner - left) @ self.weight.T
        self.second.addmm_(left.T, left)
        self.cross.addmm_(missing.T, left)
        self.mean += left.sum(0)
        self.lost += missing.sum(0)
        self.lost_square += float(missing.double().square().sum())
        self.output_square += float((inner @ self.weight.T).double().square().sum())
        self.load += on[:, :-1].sum(0)
        self.tokens += len(x)

    def result(self) -> Routed:
        count = max(self.tokens, 1)
        for total in (self.second, self.cross, self.mean, self.lost, self.load):
            total /= count
        return Routed(
            self.second.cpu(), self.mean.cpu(), self.cross.cpu(), self.lost.cpu(),
            self.lost_square / count, self.output_square / count, self.load.cpu(), self.tokens,
        )  # fmt: skip


def choose(routing: Routing, x: Tensor) -> Tensor:
    """The experts (T, k) that run for x (T, H); computed in x's type, as in the split model."""
    if routing.weight is None:
        scores = x.new_zeros(len(x), len(routing.experts))
    else:
        bias = None if routing.bias is None else routing.bias.to(x)
        scores = F.linear(x, routing.weight.to(x), bias)
    return torch.topk(scores, routing.active, dim=-1).indices
