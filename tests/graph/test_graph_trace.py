"""Tracing: what is a leaf, what is refused and how, what is tidied; lowering and text."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from pico import FAMILY, GatedMLP, PicoBlock, unified, unified_inputs
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils.deprecation import deprecate_kwarg

from umcompress.errors import ModelError, UmcompressError, UsageError
from umcompress.graph.lower import lower, lowered, lowered_graph, original_class
from umcompress.graph.model_graph import trace_model
from umcompress.graph.printer import print_graph
from umcompress.graph.trace import trace_block

X = torch.linspace(-1, 1, 24).reshape(4, 6)


class AsksForAValue(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class MakesAConstant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tensor([1.0, 2.0])


class Drops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.dropout(self.linear(x), 0.5, self.training)


class WritesInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        y.add_(1.0)
        return x + y


def passed_on(forward: Any) -> Any:
    @functools.wraps(forward)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    return wrapper


class Decorated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = GatedMLP(6, 4)

    @passed_on
    def forward(self, x: Tensor, context: object = None) -> Tensor:
        return x + self.mlp(x)


def test_a_question_about_a_value_is_refused_with_the_place_that_asked() -> None:
    with pytest.raises(ModelError) as caught:
        trace_block(AsksForAValue(), "layers.3")
    message = str(caught.value)
    assert "layers.3" in message
    assert "AsksForAValue" in message
    assert "return x * 2 if x.sum() > 0 else x" in message


def test_a_baked_constant_is_refused_and_leaves_nothing_behind() -> None:
    block = MakesAConstant()
    with pytest.raises(ModelError, match="_tensor_constant0"):
        trace_block(block)
    assert not hasattr(block, "_tensor_constant0")


def test_decorators_are_looked_through_and_the_class_is_put_back() -> None:
    block = Decorated()
    graph = trace_block(block)
    assert type(block) is Decorated
    assert "def forward(self, x, context = None)" in print_graph(graph)
    want = block(X)
    lower(block, graph)
    assert torch.equal(block(X), want)


def test_dropout_follows_the_mode_of_the_block() -> None:
    block = Drops().eval()
    lower(block, trace_block(block))
    assert torch.equal(block(X), block(X))
    block.train()
    assert not torch.equal(block(X), block(X))


def test_an_in_place_call_stays_before_what_reads_it() -> None:
    block = WritesInPlace()
    graph = trace_block(block)
    uses = next(n for n in graph.nodes if str(n.target) == "add_").users
    assert len(uses) == 1


def test_attention_is_a_leaf_and_feed_forward_is_open() -> None:
    text = print_graph(trace_block(PicoBlock(12, 10, 2, 2, 0, gated=True)))
    assert "self.self_attn(norm1, context)" in text
    assert "self.mlp.up_proj(norm2)" in text
    assert "None" not in text
    assert print_graph(trace_block(PicoBlock(12, 10, 2, 2, 0, gated=True))) == text


def test_lowering_every_block_changes_no_output_and_no_name() -> None:
    model = unified()
    want, names = model(*unified_inputs()), list(model.state_dict())
    graph = trace_model(model, FAMILY)
    for site in graph.blocks(stack="all"):
        lower(model.get_submodule(site.path), graph.block_graph(site.path))
    for twin in (model, copy.deepcopy(model)):
        assert list(twin.state_dict()) == names
        for got, wanted in zip(twin(*unified_inputs()), want, strict=True):
            assert torch.equal(got, wanted)
    assert trace_model(model, FAMILY).branches(stack="all") == graph.branches(stack="all")


def test_a_lowered_block_keeps_hooks_gradients_and_its_own_class_as_base() -> None:
    block = Decorated()
    seen: list[Tensor] = []
    block.register_forward_hook(lambda module, args, out: seen.append(out))
    lower(block, trace_block(block))
    lower(block, trace_block(block))
    assert isinstance(block, Decorated)
    assert original_class(block) is Decorated
    assert type(block).__mro__[1] is Decorated
    block(X).sum().backward()
    assert len(seen) == 1
    assert all(parameter.grad is not None for parameter in block.parameters())


@pytest.mark.parametrize("when", ["given to lower", "read back"])
def test_changing_a_copy_of_the_graph_does_not_change_the_block(when: str) -> None:
    block = Decorated()
    graph = trace_block(block)
    lower(block, graph)
    if when == "read back":
        graph = trace_block(block)
    for node in reversed(list(graph.nodes)):
        if node.op == "call_module":
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)
    kept = lowered_graph(block)
    assert kept is not None
    assert any(node.op == "call_module" for node in kept.nodes)
    call = "mlp_gate_proj = self.mlp.gate_proj(x)"
    assert call in print_graph(kept) and call not in print_graph(graph)


def test_lowered_for_a_while() -> None:
    block = Decorated()
    graph = trace_block(block)
    with pytest.raises(ZeroDivisionError), lowered(block, graph):
        assert type(block) is not Decorated
        raise ZeroDivisionError
    assert type(block) is Decorated


def test_a_forward_on_the_instance_is_refused() -> None:
    block = Decorated()
    graph = trace_block(block)
    block.forward = lambda x: x
    with pytest.raises(ModelError, match="hide it"):
        lower(block, graph)


def test_a_rewritten_block_compiles() -> None:
    block = Decorated()
    want = block(X)
    lower(block, trace_block(block))
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), want)


def test_selections_name_what_is_there() -> None:
    graph = trace_model(unified(), FAMILY)
    assert [site.index for site in graph.blocks(layers={0, 2})] == [0, 2]
    assert {site.stack for site in graph.feed_forwards("understanding", stack="all")} == {"decoder", "vision"}
    with pytest.raises(UsageError, match="did you mean 'vision'"):
        graph.blocks(stack="visoin")
    with pytest.raises(UsageError, match=r"did you mean 'layers\.1'"):
        graph.block("layer.1")


class Shaped(nn.Module):
    """As many mixtures are written: flattened to rows, and back to whatever shape it was."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        rows = self.linear(x.view(-1, shape[-1]))
        return rows.view(*shape) + rows.reshape(*shape)


def test_a_shape_handed_on_in_pieces_is_not_counted() -> None:
    block = Shaped()
    twin = copy.deepcopy(block)
    lower(twin, trace_block(twin))
    for x in (X, X.reshape(2, 2, 6), X.reshape(1, 2, 2, 6)):
        assert torch.equal(twin(x), block(x))


class Renamed(nn.Module):
    """As attentions of transformers are whose arguments have new names."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    @deprecate_kwarg("scale", "9.0", new_name="factor")  # type: ignore[untyped-decorator]  # transformers says no types
    def forward(self, x: Tensor, mask: Tensor | None = None, factor: float = 1.0) -> Tensor:
        if mask is not None:
            x = x * mask.to(x.dtype)
        return x + factor * self.linear(x)


class HoldsRenamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Renamed()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x + self.inner(x, mask)


def test_an_argument_with_a_new_name_leaves_checks_for_none_as_they_are() -> None:
    block = HoldsRenamed()
    expected = block(X)
    with lowered(block, trace_block(block)):
        assert torch.equal(block(X), expected)
        with pytest.raises(UmcompressError, match="mask"):  # traced without one, the graph says so
            block(X, torch.ones(6))
