"""Sites are found by pattern: which branches, which channels, and what is rightly left alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umcompress.graph.branches import find_branches
from umcompress.graph.channels import channel_groups
from umcompress.graph.trace import trace_block


class TinyAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.proj(x), x


class Block(nn.Module):
    """The parts that the blocks below put together in different ways."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(6), nn.LayerNorm(6)
        self.attn = TinyAttention()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 8)
        self.inner_norm = nn.LayerNorm(8)
        self.act = nn.SiLU()
        self.softmax = nn.Softmax(-1)
        self.scale = nn.Parameter(torch.ones(6))

    def ff(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class PreNorm(Block):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, weights = self.attn(self.norm1(x))
        x = x + y
        return self.ff(self.norm2(x)) + x, weights


class PostNorm(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attn(x)[0])
        out: Tensor = self.norm2(x + self.ff(x))
        return out


class SandwichAndScale(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale * self.attn(self.norm1(x))[0]
        return torch.add(x, F.dropout(self.norm2(self.ff(x)), 0.1, self.training))


class Parallel(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        return x + self.attn(y)[0] + self.ff(y)


def kinds(block: Block) -> list[tuple[str, str]]:
    graph = trace_block(block)
    branches = find_branches(graph, block, "layers.0", lambda path: "shared")
    return [(branch.kind, branch.component) for branch in branches]


@pytest.mark.parametrize("kind", [PreNorm, PostNorm, SandwichAndScale, Parallel])
def test_branches_however_the_residuals_are_written(kind: type[Block]) -> None:
    assert kinds(kind()) == [("attention", "shared"), ("feed_forward", "shared")]


def test_what_adds_one_linear_is_no_branch() -> None:
    class OneLinear(Block):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.fc2(self.act(self.norm1(x)).repeat(1, 2)[:, :8])

    assert kinds(OneLinear()) == []


def groups(block: Block) -> list[tuple[list[str], list[str], str]]:
    return [(g.producers, g.consumers, g.activation) for g in channel_groups(trace_block(block), block)]


def test_plain_and_gated_channels() -> None:
    class Gated(Block):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc2(torch.mul(self.fc3(x) * 2, F.gelu(self.fc1(x))))
            return out

    assert groups(PreNorm()) == [(["fc1"], ["fc2"], "silu")]
    assert groups(Gated()) == [(["fc3", "fc1"], ["fc2"], "gelu")]


def test_a_feed_forward_that_two_streams_share_is_narrowed_for_both() -> None:
    class TwoStreams(Block):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return x + self.fc2(self.act(self.fc1(x))), y + self.fc2(self.act(self.fc1(y)))

    assert [(producers, consumers) for producers, consumers, _ in groups(TwoStreams())] == [(["fc1"], ["fc2"])]


def test_channels_that_something_else_touches_are_left_alone() -> None:
    class Normed(Block):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.fc2(self.inner_norm(self.fc1(x)))

    class Returned(Block):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.act(self.fc1(x))
            return x + self.fc2(h), h

    class Mixed(Block):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.fc2(self.softmax(self.fc1(x)))

    class GatedFromElsewhere(Block):
        def forward(self, x: Tensor, gate: Tensor) -> Tensor:
            return x + self.fc2(self.fc1(x) * gate)

    class OtherwiseToo(Block):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.fc2(self.act(self.fc1(x))) + self.fc2(x)

    class Summed(Block):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.fc2(self.fc1(x) + self.fc3(x))

    for kind in (Normed, Returned, Mixed, GatedFromElsewhere, OtherwiseToo, Summed):
        assert groups(kind()) == [], kind.__name__
