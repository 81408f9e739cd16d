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

    def __init__(self, leak: bool = False, named: bool = True) -> None:
        super().__init__()
        self.both, self.last, self.leak = nn.Linear(6, 16, dtype=torch.float64), nn.Linear(8, 6).double(), leak
        self.named = named

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.both(x).chunk(2, dim=-1) if self.named else self.both(x).chunk(2, -1)
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
    assert [one.width for one in trace_model(stacked(Fused(named=False)), Family()).feed_forwards()] == [8, 8]


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


class WeightsAttention(nn.Module):
    """An attention that gives its weights as well."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, 6, dtype=torch.float64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.out(x.mean(1, keepdim=True).expand_as(x)), x.softmax(-1)


class AsksForWeights(nn.Module):
    """x + attention(x), and a feed-forward; the weights behind it, if they are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = WeightsAttention()
        self.first, self.last = nn.Linear(6, 8, dtype=torch.float64), nn.Linear(8, 6, dtype=torch.float64)

    def forward(self, x: Tensor, output_attentions: bool = False) -> Any:
        mixed, weights = self.attention(x)
        x = x + mixed
        outputs: tuple[Any, ...] = (x + self.last(nn.functional.relu(self.first(x))),)
        if output_attentions:
            outputs += (weights,)
        return outputs


def test_what_is_given_when_asked_for_is_none_once_its_branch_is_gone() -> None:
    torch.manual_seed(0)
    model = stacked(AsksForWeights())
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    first: Any = model.get_submodule("blocks.0")
    wanted = first(x, output_attentions=True)
    twin: Any = copy.deepcopy(first)
    lower(twin, trace_block(first))
    assert len(twin(x)) == 1 and len(twin(x, output_attentions=True)) == 2
    assert all(map(torch.equal, twin(x, output_attentions=True), wanted))
    plan = Plan(pass_name="test", edits=(DropBranch(block="blocks.0", branch="attention", component="shared"),))
    edited: Any = rewrite(model, Family(), [plan])
    stream, weights = edited.blocks[0](x, output_attentions=True)
    assert torch.equal(stream, x + first.last(nn.functional.relu(first.first(x)))) and weights is None


class Weighted(nn.Module):
    """x + W relu(V x); a sum of the inner channels, weighted by a tensor as wide as they are, is added to it."""

    def __init__(self, fixed: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8, dtype=torch.float64), nn.Linear(8, 6, dtype=torch.float64)
        self.fixed = fixed

    def forward(self, x: Tensor) -> Tensor:
        inner = nn.functional.relu(self.first(x))
        if self.fixed:
            return x + self.last(inner) + (inner * x.new_ones(8)).sum(-1, keepdim=True)
        return x + self.last(inner * 2)


def test_channels_that_meet_a_tensor_of_their_width_stay() -> None:
    assert [site.width for site in trace_model(stacked(Weighted(False)), Family()).feed_forwards()] == [8, 8]
    assert trace_model(stacked(Weighted(True)), Family()).feed_forwards() == ()


class Asks(nn.Module):
    """Doubles a stream, but for those that it makes an exception for."""

    def __init__(self, asks: str) -> None:
        super().__init__()
        self.asks = asks

    def forward(self, x: Tensor) -> Tensor:
        if self.asks == "four" and x.ndim == 4:
            return x
        if self.asks == "not two" and x.ndim != 2:
            return x * 2
        if self.asks == "mps" and x.device.type == "mps":
            return x
        if self.asks == "other" and x.device.type == "tpu":
            return x
        return x * 2


@pytest.mark.parametrize("asks", ["four", "mps"])
def test_exceptions_for_other_shapes_and_devices_are_guarded(asks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Asks, "__module__", "diffusers.models.asks")
    block = Asks(asks)
    graph = trace_block(block)
    assert len([node for node in graph.nodes if is_guard(node)]) == 1
    lower(block, graph)
    x = torch.ones(1, 2, 3)
    assert torch.equal(block(x), x * 2)
    if asks == "four":
        with pytest.raises(ModelError):
            block(x[None])


def test_dimensions_are_assumed_of_blocks_of_diffusers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for asks in ("four", "other"):
        with pytest.raises(ModelError):
            trace_block(Asks(asks))
    monkeypatch.setattr(Asks, "__module__", "diffusers.models.asks")
    with pytest.raises(ModelError):
        trace_block(Asks("other"))
    # `not two` is taken for what a stream is not: it has to be refused once it is met.
    block = Asks("not two")
    lower(block, trace_block(block))
    with pytest.raises(ModelError):
        block(torch.ones(1, 2, 3))
