"""Questions that a forward asks about its arguments: refused, or assumed and guarded."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from umcompress.documents.plan import DropBranch, KeepChannels, Plan
from umcompress.errors import ModelError
from umcompress.graph.guards import is_guard
from umcompress.graph.lower import lower
from umcompress.graph.model_graph import trace_model
from umcompress.graph.trace import trace_block
from umcompress.rewrite.apply import rewrite


class Family:
    """One stack; everything is shared."""

    main_stack = "blocks"

    def stacks(self, model: nn.Module) -> dict[str, str]:
        return {"blocks": "blocks"}

    def component_of(self, path: str) -> str:
        return "shared"


class Optional(nn.Module):
    """Adds what it is given, if it is given something."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((4,), 2.0))
        self.absent = None

    def forward(self, x: Tensor, more: Tensor | None = None, flag: bool = False) -> Any:
        if self.scale is not None and self.absent is None:
            x = x * self.scale
        if more is not None:
            x = x + more
        return (x, x) if flag else (x,)


def test_defaults_are_assumed_and_held() -> None:
    block = Optional()
    graph = trace_block(block)
    assert [node.args[1] for node in graph.nodes if is_guard(node)] == ["flag", "more"]
    lower(block, graph)
    x = torch.arange(4.0)
    assert torch.equal(block(x)[0], x * 2)
    with pytest.raises(ModelError, match="more = Tensor"):
        block(x, more=x)
    with pytest.raises(ModelError, match="flag = bool"):
        block(x, flag=True)


class Writes(nn.Module):
    """Writes into a part of a tensor."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 1
        y[:, 1:3] = x[:, :2] * 10
        return y + 1


def test_an_assignment_to_a_part_is_kept_and_comes_before_later_uses() -> None:
    block = Writes()
    x = torch.arange(8.0).reshape(2, 4)
    want = block(x)
    lower(block, trace_block(block))
    assert torch.equal(block(x), want)


class Fused(nn.Module):
    """x + W(silu(gate) * up), both from one linear; and a second user of a part in `leak`."""

    def __init__(self, leak: bool = False) -> None:
        super().__init__()
        self.both, self.last, self.leak = nn.Linear(6, 16, dtype=torch.float64), nn.Linear(8, 6).double(), leak

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.both(x).chunk(2, dim=-1)
        y = x + self.last(nn.functional.silu(gate) * up)
        return y + gate.sum() if self.leak else y


class Parallel(nn.Module):
    """x + (attention(x) + feed_forward(x)): both branches in one sum."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = MeanAttention()
        self.first, self.last = nn.Linear(6, 8, dtype=torch.float64), nn.Linear(8, 6, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.relu(self.first(x))) + self.attention(x) + x


class MeanAttention(nn.Module):
    """Mixes tokens by their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, 6, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x.mean(1, keepdim=True).expand_as(x))


def stacked(block: nn.Module) -> nn.Module:
    """Two blocks in a stack."""
    model = nn.Module()
    model.blocks = nn.ModuleList([block, copy.deepcopy(block)])
    return model


def test_parts_of_one_linear_are_narrowed_alike_or_not_at_all() -> None:
    torch.manual_seed(0)
    model = stacked(Fused())
    (site, _) = trace_model(model, Family()).feed_forwards()
    assert (site.width, site.producers, site.consumer) == (8, ("blocks.0.both",) * 2, "blocks.0.last")
    reference: Any = copy.deepcopy(model)
    plan = Plan(pass_name="test", edits=(KeepChannels(site=site.path, keep=(1, 2, 6)),))
    edited: Any = rewrite(model, Family(), [plan])
    reference.blocks[0].last.weight.data[:, [0, 3, 4, 5, 7]] = 0
    x = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(edited.blocks[0](x), reference.blocks[0](x), rtol=1e-12, atol=1e-12)
    assert edited.blocks[0].both.weight.shape == (6, 6)
    assert trace_model(stacked(Fused(leak=True)), Family()).feed_forwards() == ()


def test_parallel_branches_are_dropped_one_at_a_time() -> None:
    torch.manual_seed(0)
    model = stacked(Parallel())
    graph = trace_model(model, Family())
    first: Any = model.get_submodule("blocks.0")
    assert sorted(b.kind for b in graph.branches(layers={0})) == ["attention", "feed_forward"]
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    for kind, last in (("attention", "attention.out"), ("feed_forward", "last")):
        plan = Plan(pass_name="test", edits=(DropBranch(block="blocks.0", branch=kind, component="shared"),))  # type: ignore[arg-type]
        edited: Any = rewrite(copy.deepcopy(model), Family(), [plan])
        reference: Any = copy.deepcopy(model)
        for parameter in reference.blocks[0].get_submodule(last).parameters():
            parameter.data.zero_()
        torch.testing.assert_close(edited.blocks[0](x), reference.blocks[0](x), rtol=1e-12, atol=1e-12)
        assert len(list(edited.blocks[0].parameters())) < len(list(first.parameters()))
