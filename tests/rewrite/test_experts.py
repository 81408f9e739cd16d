"""The expert module against a reference that runs each token through each of its experts by itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from umcompress.rewrite.nn import cpu, dispatch
from umcompress.rewrite.nn.dispatch import sort_by_expert, spread_linear, sum_linear
from umcompress.rewrite.nn.experts import FEW_TOKENS, ExpertShape, SparseFeedForward


class GatedSilu(nn.Module):
    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up


GATED = ExpertShape(
    hidden=8, experts=4, active=2, width=3,
    producers=("gate_proj", "up_proj"), consumer="down_proj", producer_bias=(False, False), consumer_bias=False,
)  # fmt: skip
PLAIN = replace(GATED, producers=("fc1",), consumer="fc2", producer_bias=(True,), consumer_bias=True)
SHAPES = {
    "gated": GATED,
    "biases": PLAIN,
    "shared": replace(GATED, shared_width=5),
    "shared biases": replace(PLAIN, shared_width=5, weighting="softmax"),
    "one bias of two": replace(GATED, producer_bias=(False, True)),
    "softmax": replace(GATED, weighting="softmax"),
    "selector": replace(GATED, selector=True),
    "selector softmax": replace(GATED, selector=True, weighting="softmax"),
    "all active": replace(GATED, active=4),
    "one active": replace(GATED, active=1),
    "one expert": replace(GATED, experts=1, active=1),
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def built(shape: ExpertShape, dtype: torch.dtype = torch.float64, seed: int = 0) -> SparseFeedForward:
    torch.manual_seed(seed)
    module = SparseFeedForward(shape, GatedSilu() if len(shape.producers) == 2 else nn.GELU()).to(dtype)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def reference(module: SparseFeedForward, x: Tensor) -> Tensor:
    """x (T, H) -> (T, H), a token and an expert at a time, from the state dict alone."""
    shape, values = module.shape, dict(module.named_parameters())

    def feed(token: Tensor, prefix: str, expert: int | None) -> Tensor:
        def of(name: str) -> Tensor:
            stacked = values[f"{prefix}.{name}"]
            return stacked if expert is None else stacked[expert]

        made = []
        for name, bias in zip(shape.producers, shape.producer_bias, strict=True):
            out = of(f"{name}.weight") @ token
            made.append(out + of(f"{name}.bias") if bias else out)
        return of(f"{shape.consumer}.weight") @ module.inner(*made)

    rows = []
    for token in x:
        logits = values["gate.weight"] @ token
        scores = logits.detach()
        if shape.selector:
            scores = scores + values["selector.weight"] @ token.detach() + values["selector.bias"]
        chosen = sorted(range(shape.experts), key=lambda e: -float(scores[e]))[: shape.active]
        weights = 1 + logits
        if shape.weighting == "softmax":
            total = sum(logits[e].exp() for e in chosen)
            weights = shape.active * logits.exp() / total
        out = sum(weights[e] * feed(token, "experts", e) for e in chosen)
        if shape.shared_width:
            out = out + feed(token, "shared_expert", None)
        rows.append(out + values["bias"] if shape.consumer_bias else out)
    return torch.stack(rows)


@pytest.fixture(params=["per expert", "all experts"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The products of the CPU, and those of devices and dtypes that have no grouped product."""
    if request.param == "all experts":
        monkeypatch.setattr(dispatch, "_on_cpu", lambda x: False)
    yield request.param


@every_shape
def test_is_the_reference(shape: ExpertShape, kernel: str) -> None:
    module = built(shape)
    x = torch.randn(7, 8, dtype=torch.float64)
    torch.testing.assert_close(module(x), reference(module, x))


@every_shape
@pytest.mark.parametrize(("tokens", "thin"), [(7, 32), (FEW_TOKENS, 32), (7, 0), (20, 0)])
def test_without_gradients_all_at_once_or_sorted(
    shape: ExpertShape, tokens: int, thin: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("umcompress.rewrite.nn.experts.THIN", thin)
    monkeypatch.setattr("umcompress.rewrite.nn.experts.FEW_ROWS", 20)
    module, ways = built(shape, seed=2), list[str]()

    def note(name: str) -> None:
        way = getattr(module, name)

        def noted(*given: Any) -> Any:
            ways.append(name)
            return way(*given)

        monkeypatch.setattr(module, name, noted)

    for name in ("_all_at_once", "_decode"):
        note(name)
    x = torch.randn(tokens, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(module(x), reference(module, x))
    rows = tokens * shape.active / shape.experts
    share = shape.active / shape.experts
    assert ways == (["_all_at_once"] if share > 0.3 and (thin or 1 < rows < 20) else [])


@every_shape
def test_gradients_are_the_reference_s(shape: ExpertShape, kernel: str) -> None:
    """To x, to the router and to every expert, also to one that no token chose."""
    module = built(shape, seed=1)
    x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    into = [x, *(p for p in module.parameters() if p.requires_grad)]
    upstream = torch.randn(5, 8, dtype=torch.float64)
    ours = torch.autograd.grad(module(x), into, upstream)
    theirs = torch.autograd.grad(reference(module, x), into, upstream, materialize_grads=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_are_the_numerical_ones(kernel: str) -> None:
    module = built(replace(GATED, hidden=4, shared_width=2), seed=2)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in module.named_parameters()]

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *module.parameters()))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("gated", [True, False])
def test_the_grouped_products_agree(gated: bool, frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way taken on CUDA in bfloat16, here with the CPU's own grouped_mm in float32; an expert is idle."""
    shape = replace(GATED if gated else PLAIN, hidden=16, width=8, experts=5, active=2, shared_width=4, selector=True)
    module = built(shape, torch.float32, seed=4)
    module.selector.bias.data[3] = -1e6
    module.experts.requires_grad_(not frozen)
    x = torch.randn(11, 16, requires_grad=True)
    exact = copy.deepcopy(module).double()
    there = x.detach().double().requires_grad_()
    expected = reference(exact, there)
    monkeypatch.setattr(dispatch, "_on_cpu", lambda x: False)
    monkeypatch.setattr(dispatch, "_grouped", lambda x, *sides: True)
    out = module(x)
    upstream = torch.randn_like(out)
    ours = torch.autograd.grad(out, [x, *(p for p in module.parameters() if p.requires_grad)], upstream)
    into = [there, *(p for p in exact.parameters() if p.requires_grad)]
    theirs = torch.autograd.grad(expected, into, upstream.double(), materialize_grads=True)
    for one, other in zip((out, *ours), (expected, *theirs), strict=True):
        scale = max(1.0, float(other.detach().abs().max()))
        torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-5 * scale)


def test_frozen_experts_pass_gradients_on() -> None:
    module = built(GATED)
    x = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    module(x).sum().backward()
    free, routed = x.grad, module.gate.weight.grad
    frozen = copy.deepcopy(module)
    frozen.zero_grad()
    frozen.experts.requires_grad_(False)
    again = x.detach().requires_grad_()
    frozen(again).sum().backward()
    assert all(p.grad is None for p in frozen.experts.parameters())
    assert again.grad is not None and free is not None
    torch.testing.assert_close(again.grad, free)
    torch.testing.assert_close(frozen.gate.weight.grad, routed)


def test_some_producers_may_be_frozen() -> None:
    module = built(GATED)
    x = torch.randn(6, 8, dtype=torch.float64)
    module(x).sum().backward()
    expected = module.experts["up_proj"].weight.grad
    frozen = copy.deepcopy(module)
    frozen.zero_grad()
    frozen.experts["gate_proj"].requires_grad_(False)
    frozen(x).sum().backward()
    assert frozen.experts["gate_proj"].weight.grad is None
    torch.testing.assert_close(frozen.experts["up_proj"].weight.grad, expected)


def test_the_selector_chooses_and_takes_no_gradient() -> None:
    module = built(replace(GATED, selector=True), torch.float32)
    assert not any(p.requires_grad for p in module.selector.parameters())
    nn.init.zeros_(module.gate.weight)
    x = torch.randn(9, 8)
    weights, chosen, logits = module.route(x)
    assert torch.equal(chosen, torch.topk(module.selector(x), 2).indices)
    assert torch.equal(weights, torch.ones(9, 2)) and not logits.any()
    module.gate.weight.data = -module.selector.weight.data
    module.selector.bias.data = torch.tensor([0.0, 3.0, 2.0, 1.0])
    assert torch.equal(module.route(x)[1].sort(dim=-1).values, torch.tensor([[1, 2]]).expand(9, 2))


def test_ties_go_the_way_of_topk() -> None:
    module = built(replace(GATED, experts=16, active=8))
    nn.init.zeros_(module.gate.weight)
    x = torch.randn(4, 8, dtype=torch.float64)
    assert torch.equal(module.route(x)[1], torch.topk(torch.zeros(4, 16, dtype=torch.float64), 8).indices)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    experts=st.integers(1, 9),
    width=st.integers(1, 6),
    shared=st.integers(0, 5),
    gated=st.booleans(),
    lead=st.lists(st.integers(0, 5), max_size=3),
    seed=st.integers(0, 99),
)
def test_all_active_with_a_zero_router_is_the_dense_feed_forward(
    experts: int, width: int, shared: int, gated: bool, lead: list[int], seed: int
) -> None:
    shape = replace(GATED if gated else PLAIN, experts=experts, active=experts, width=width, shared_width=shared)
    module = built(shape, torch.float32, seed)
    for parameter in module.parameters():
        parameter.data.mul_(0.3)
    nn.init.zeros_(module.gate.weight)
    x = torch.randn(*lead, 8)
    with torch.no_grad():
        expected = dense(module)(x)
        scale = max(1.0, float(expected.abs().max())) if x.numel() else 1.0
        torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-6 * scale)


def dense(module: SparseFeedForward) -> Callable[[Tensor], Tensor]:
    """The feed-forward that the experts and the shared expert are parts of."""
    shape, values = module.shape, module.state_dict()

    def joined(name: str, rows: bool) -> Tensor:
        stacked = values[f"experts.{name}"]
        parts = [stacked.flatten(0, 1) if rows else torch.cat(tuple(stacked), 1)]
        if shape.shared_width:
            parts.append(values[f"shared_expert.{name}"])
        return torch.cat(parts, 0 if rows else 1)

    def call(x: Tensor) -> Tensor:
        made = [
            F.linear(x, joined(f"{name}.weight", True), joined(f"{name}.bias", True) if bias else None)
            for name, bias in zip(shape.producers, shape.producer_bias, strict=True)
        ]
        return F.linear(module.inner(*made), joined(f"{shape.consumer}.weight", False), values.get("bias"))

    return call


@pytest.mark.parametrize("lead", [(), (1,), (0,), (3, 0), (2, 3), (1, 1, 1)])
@every_shape
def test_any_leading_shape(shape: ExpertShape, lead: tuple[int, ...]) -> None:
    module = built(shape)
    x = torch.randn(*lead, 8, dtype=torch.float64)
    out = module(x)
    assert out.shape == x.shape
    out.sum().backward()
    expected = reference(module, x.reshape(-1, 8)) if x.numel() else x
    torch.testing.assert_close(out.detach(), expected.detach().reshape(x.shape))


@every_shape
def test_one_token_without_gradients(shape: ExpertShape) -> None:
    """Decoding takes a way of its own, with rows both short and long."""
    x = torch.randn(1, 8, dtype=torch.float64)
    for width, dtype in ((3, torch.float64), (3, torch.float32), (600, torch.float32), (3, torch.bfloat16)):
        module = built(replace(shape, width=width), dtype)
        expected = reference(copy.deepcopy(module).double(), x.to(dtype).double())
        with torch.no_grad():
            assert module._is_plain(x)
            ours = module(x.to(dtype)).double()
        loose = 0.1 if dtype == torch.bfloat16 else 1e-4
        scale = float(expected.detach().abs().max())
        torch.testing.assert_close(ours, expected.detach(), rtol=loose, atol=loose * scale)


def test_large_products_through_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups large enough for it, of sizes that are padded, the last one not; forward and backward."""
    monkeypatch.setattr(cpu, "ONEDNN_IS_FASTER", True)
    experts, hidden, width = 3, 128, 64
    torch.manual_seed(0)
    chosen = torch.cat([torch.full((n,), e) for e, n in enumerate((301, 133, 290))])[:, None]
    assert min(301, 133, 290) * hidden * width >= cpu._LARGE
    order = sort_by_expert(chosen, experts)
    x, up, down = torch.randn(724, hidden), torch.randn(experts, width, hidden), torch.randn(experts, hidden, width)
    leaves = [tensor.requires_grad_() for tensor in (x, up, down)]
    out = sum_linear(spread_linear(x, [up], order)[0], down, order)
    expected = torch.cat([x[chosen[:, 0] == e].double() @ up[e].double().T @ down[e].double().T for e in range(3)])
    upstream = torch.randn_like(out)
    ours = torch.autograd.grad(out, leaves, upstream)
    theirs = torch.autograd.grad(expected, leaves, upstream.double())
    for one, other in zip((out, *ours), (expected, *theirs), strict=True):
        scale = float(other.detach().abs().max())
        torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=1e-4 * scale)


def test_an_order_lists_every_pair_once() -> None:
    chosen = torch.tensor([[2, 0], [0, 3], [3, 2]])
    order = sort_by_expert(chosen, 5)
    assert order.expert.tolist() == [0, 0, 2, 2, 3, 3]
    assert order.token.tolist() == [0, 1, 0, 2, 1, 2]
    assert order.ends.tolist() == [2, 2, 4, 6, 6]
    assert torch.equal(order.expert[order.position], chosen)
    assert torch.equal(chosen.reshape(-1)[order.pair], order.expert)


@every_shape
def test_shapes_on_the_meta_device(shape: ExpertShape) -> None:
    with torch.device("meta"):
        module = SparseFeedForward(shape, GatedSilu() if len(shape.producers) == 2 else nn.GELU())
        out = module(torch.empty(2, 3, 8, requires_grad=True))
    assert out.is_meta and out.shape == (2, 3, 8)
    out.sum().backward()
    assert {n: tuple(v.shape) for n, v in module.state_dict().items()} == {
        n: tuple(v.shape) for n, v in built(shape).state_dict().items()
    }


def test_the_names_of_the_tensors() -> None:
    module = built(replace(PLAIN, shared_width=5, selector=True))
    assert {name: tuple(value.shape) for name, value in module.state_dict().items()} == {
        "gate.weight": (4, 8),
        "selector.weight": (4, 8),
        "selector.bias": (4,),
        "experts.fc1.weight": (4, 3, 8),
        "experts.fc1.bias": (4, 3),
        "experts.fc2.weight": (4, 8, 3),
        "shared_expert.fc1.weight": (5, 8),
        "shared_expert.fc1.bias": (5,),
        "shared_expert.fc2.weight": (8, 5),
        "bias": (8,),
    }


def test_a_copy_is_independent() -> None:
    module = built(GATED)
    x = torch.randn(3, 8, dtype=torch.float64)
    before = module(x)
    other = copy.deepcopy(module)
    assert torch.equal(other(x), before)
    nn.init.zeros_(other.get_parameter("experts.down_proj.weight"))
    assert torch.equal(module(x), before) and not other(x).any()


def test_a_watcher_sees_every_forward() -> None:
    module, seen = built(GATED), []
    module.watcher = lambda chosen, logits: seen.append((chosen, logits))
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    module(x)
    (chosen, logits), = seen
    assert torch.equal(logits, x.reshape(-1, 8) @ module.gate.weight.T)
    assert torch.equal(chosen, torch.topk(logits, 2).indices)


@pytest.mark.parametrize("shape", [GATED, SHAPES["shared biases"], SHAPES["selector"]])
def test_compiles_to_one_graph(shape: ExpertShape) -> None:
    module = built(shape, seed=3)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=False)
    x = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    into = [x, *(p for p in module.parameters() if p.requires_grad)]
    out, expected = compiled(x), module(x)
    torch.testing.assert_close(out, expected)
    for one, other in zip(torch.autograd.grad(out.sum(), into), torch.autograd.grad(expected.sum(), into), strict=True):
        torch.testing.assert_close(one, other)


def test_autocast_casts_the_experts() -> None:
    module = built(SHAPES["biases"], torch.float32)
    x = torch.randn(6, 8)
    for grad in (True, False):
        with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
            out, one = module(x), module(x[:1])
        assert out.shape == x.shape
        torch.testing.assert_close(one.float(), out[:1].float(), rtol=0.1, atol=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        module(x).sum().backward()
    grads = [p.grad for p in module.parameters()]
    assert all(grad is not None and grad.dtype == torch.float32 for grad in grads)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_cuda_agrees_and_waits_for_nothing(dtype: torch.dtype) -> None:
    shape = replace(GATED, hidden=64, width=32, experts=8, active=4, shared_width=16)
    module = built(shape, torch.float32)
    for parameter in module.parameters():
        parameter.data.mul_(0.1)
    x = torch.randn(50, 64)
    reference_out = copy.deepcopy(module).to(dtype).double()
    expected = reference(reference_out, x.to(dtype).double())
    there = module.to("cuda", dtype)
    inputs = x.to("cuda", dtype).requires_grad_()
    there(inputs).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = there(inputs)
        out.backward(torch.ones_like(out))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(out.cpu().double(), expected, rtol=3e-2, atol=3e-2 * float(expected.abs().max()))
