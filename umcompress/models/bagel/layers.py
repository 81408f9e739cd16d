"""Small parts of the BAGEL decoder.  T rows, H hidden, I feed-forward width."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class RMSNorm(nn.Module):
    """`weight * (x * rsqrt(mean(x^2) + eps))`, the bracket computed in float32.  (T, H) -> (T, H)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = functional.rms_norm(x.float(), (x.shape[-1],), None, self.eps)
        return self.weight * wide.to(x.dtype)


class GatedMLP(nn.Module):
    """`down(silu(gate x) * up x)`.  (T, H) -> (T, H)."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return hidden


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding by halves.  x: (T, heads, head_dim); cos, sin: (T, 1, head_dim)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class TimestepEmbedder(nn.Module):
    """Sinusoid of t in [0, 1] (used as it is, not times 1000), then Linear, SiLU, Linear.  (T,) -> (T, H)."""

    FREQUENCIES = 128

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(2 * self.FREQUENCIES, hidden), nn.SiLU(), nn.Linear(hidden, hidden)
        )

    def forward(self, t: Tensor) -> Tensor:
        steps = torch.arange(self.FREQUENCIES, device=t.device, dtype=torch.float32) / self.FREQUENCIES
        angles = t.float()[:, None] * torch.exp(-math.log(10_000.0) * steps)[None]
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        first = self.mlp[0]
        assert isinstance(first, nn.Linear)
        embedded: Tensor = self.mlp(waves.to(first.weight.dtype))
        return embedded


class PositionTable(nn.Module):
    """A frozen, stored 2-D sin-cos table (side*side, H); id = row * side + column, the column comes first."""

    def __init__(self, side: int, hidden: int) -> None:
        super().__init__()
        self.side = side
        self.pos_embed = nn.Parameter(sine_table(side, hidden), requires_grad=False)

    def ids(self, rows: int, columns: int) -> Tensor:
        """(rows * columns,) ids of the top-left rectangle, row by row."""
        return (torch.arange(rows)[:, None] * self.side + torch.arange(columns)[None]).flatten()

    def forward(self, ids: Tensor) -> Tensor:
        return self.pos_embed[ids]


def sine_table(side: int, hidden: int) -> Tensor:
    """(side*side, hidden) float32, computed in float64."""
    quarter = hidden // 4
    frequencies = 10_000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    waves = torch.arange(side, dtype=torch.float64)[:, None] * frequencies[None]
    axis = torch.cat([waves.sin(), waves.cos()], dim=-1)
    column = axis[None].expand(side, -1, -1)
    row = axis[:, None].expand(-1, side, -1)
    return torch.cat([column, row], dim=-1).reshape(side * side, -1).float()


class Connector(nn.Module):
    """Vision width to decoder width: fc1, tanh-GELU, fc2.  (T, Hv) -> (T, H)."""

    def __init__(self, vision: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision, hidden)
        self.fc2 = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        mapped: Tensor = self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))
        return mapped
