"""Find feed-forward channels that can be sliced together: dependency groups, found by abstract interpretation.

A Linear's output starts a group on its last axis, pointwise functions propagate it, a product of two grouped
values merges their groups, a Linear's input ends it. A chunk cuts a new group into parts, which must be merged again
before the end. Any other use of a group freezes it. So gated, fused and ungated feed-forwards need no cases of their
own: they have two producers, one producer named twice, and one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from umcompress.graph.guards import is_guard
from umcompress.graph.linears import is_matrix, output_size
from umcompress.graph.trace import call_name, module_of

_ACTIVATIONS = {
    "silu", "gelu", "relu", "relu6", "sigmoid", "tanh", "mish", "elu", "leaky_relu", "softplus", "hardswish",
}  # fmt: skip
_PASS = {"dropout", "to", "float", "type", "contiguous", "type_as", "clone", "cast_as"}
_PRODUCTS = {"mul", "imul", "mul_", "__mul__"}


@dataclass
class ChannelGroup:
    """Channels shared by producers' rows and consumers' columns; names are relative to the block.

    A producer that is named k times gives k equal parts of its rows, in their order.
    """

    width: int
    producers: list[str] = field(default_factory=list)
    consumers: list[str] = field(default_factory=list)
    activation: str = "identity"
    frozen: bool = False


def channel_groups(graph: fx.Graph, block: nn.Module) -> tuple[ChannelGroup, ...]:
    """Groups that can be sliced: not frozen, with producers and exactly one consumer."""
    reader = _Reader(graph, block)
    for node in graph.nodes:
        reader.visit(node)
    reader.settle_fused()
    unique = {id(group): group for group in map(reader.root, reader.groups)}
    return tuple(group for group in unique.values() if reader.can_be_sliced(group))


class _Reader:
    def __init__(self, graph: fx.Graph, block: nn.Module) -> None:
        self.block = block
        self.groups: list[ChannelGroup] = []
        self.fused: list[tuple[ChannelGroup, ...]] = []
        self.merged: dict[int, ChannelGroup] = {}
        self.value: dict[fx.Node, ChannelGroup] = {}
        # Of a linear whose output is chunked, the parts; of a chunk node too.
        self.parts: dict[fx.Node, tuple[ChannelGroup, ...]] = {}
        self.calls = Counter(str(n.target) for n in graph.nodes if n.op == "call_module")
        # What a linear makes: one that is called for each of several streams makes one group.
        self.made: dict[str, ChannelGroup] = {}

    def root(self, group: ChannelGroup) -> ChannelGroup:
        while id(group) in self.merged:
            group = self.merged[id(group)]
        return group

    def of(self, value: object) -> ChannelGroup | None:
        group = self.value.get(value) if isinstance(value, fx.Node) else None
        return None if group is None else self.root(group)

    def can_be_sliced(self, group: ChannelGroup) -> bool:
        """Whether a group is all that its one consumer ever reads: a linear called twice is narrowed for both uses."""
        known = not group.frozen and bool(group.producers) and len(set(group.consumers)) == 1
        if not known or len(group.consumers) != self.calls[group.consumers[0]]:
            return False
        group.consumers = group.consumers[:1]
        return True

    def visit(self, node: fx.Node) -> None:
        module = module_of(self.block, node)
        if is_guard(node) or is_fact(node):
            return
        if is_matrix(module):
            self._linear(node, module)
        elif (part := self._part(node)) is not None:
            self.value[node] = part
        elif call_name(node) == "chunk" and (parts := self._chunk(node)):
            self.parts[node] = parts
        elif activation := _pointwise(node, module):
            self._pass_on(node, activation)
        elif call_name(node) in _PRODUCTS and len(node.args) == 2:
            self._product(node)
        else:
            for used in node.all_input_nodes:
                self._freeze(self.of(used))

    def _freeze(self, group: ChannelGroup | None) -> None:
        if group is not None:
            group.frozen = True

    def _chunk(self, node: fx.Node) -> tuple[ChannelGroup, ...]:
        """Split the group of a linear's output into equal parts, where that is what the chunk does."""
        source, (count, axis) = node.args[0], _chunking(node)
        group = self.of(source)
        if group is None or not isinstance(source, fx.Node) or group.frozen or axis != -1:
            return ()
        if not is_matrix(module_of(self.block, source)) or len(source.users) != 1:
            return ()
        if count is None or group.width % count or any(call_name(user) != "getitem" for user in node.users):
            return ()
        group.frozen = True
        parts = tuple(ChannelGroup(group.width // count, list(group.producers)) for _ in range(count))
        self.groups += parts
        self.fused.append(parts)
        return parts

    def _part(self, node: fx.Node) -> ChannelGroup | None:
        """The part of a chunk that `getitem` selects."""
        if call_name(node) != "getitem" or not isinstance(node.args[0], fx.Node) or not isinstance(node.args[1], int):
            return None
        parts = self.parts.get(node.args[0])
        return None if parts is None else parts[node.args[1]]

    def settle_fused(self) -> None:
        """Freeze fused linears whose parts did not end up in one group: parts can only be narrowed alike."""
        for parts in self.fused:
            roots = {id(self.root(part)) for part in parts}
            if len(roots) > 1:
                for part in parts:
                    self._freeze(self.root(part))

    def _linear(self, node: fx.Node, module: nn.Module) -> None:
        name = str(node.target)
        source = self.of(node.args[0]) if node.args else None
        if source is not None:
            source.consumers.append(name)
        if name not in self.made:
            self.made[name] = ChannelGroup(output_size(module), producers=[name])
            self.groups.append(self.made[name])
        self.value[node] = self.made[name]

    def _pass_on(self, node: fx.Node, activation: str) -> None:
        group = self.of(node.args[0]) if node.args else None
        if group is None:
            return
        if len([used for used in node.all_input_nodes if self.of(used) is not None]) > 1:
            self._freeze(group)
        if activation != "pass" and group.activation == "identity":
            group.activation = activation
        self.value[node] = group

    def _product(self, node: fx.Node) -> None:
        left, right = (self.of(operand) for operand in node.args)
        if left is not None and right is not None and left.width == right.width:
            if left is not right:
                left.producers += right.producers
                left.consumers += right.consumers
                left.frozen |= right.frozen
                left.activation = right.activation if left.activation == "identity" else left.activation
                self.merged[id(right)] = left
            self.value[node] = left
            return
        number = any(isinstance(operand, (int, float)) for operand in node.args)
        for group in (left, right):
            if group is not None and number:
                self.value[node] = group
            else:
                self._freeze(group)


def is_fact(node: fx.Node) -> bool:
    """Whether a node only asks what type a tensor has or where it is, which no cut changes."""
    return call_name(node) == "getattr" and node.args[1] in ("dtype", "device", "ndim")


def _chunking(node: fx.Node) -> tuple[int | None, int | None]:
    """(number of parts, axis) of a chunk; None unless both are constants."""
    count = node.args[1] if len(node.args) > 1 else node.kwargs.get("chunks")
    axis = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    return count if isinstance(count, int) else None, axis if isinstance(axis, int) else 0


def _pointwise(node: fx.Node, module: nn.Module | None) -> str | None:
    """The name of the pointwise function that a node computes, "pass" for an identity, None for any other node."""
    if module is None:
        name = call_name(node)
        return name if name in _ACTIVATIONS else "pass" if name in _PASS else None
    if isinstance(module, (nn.Dropout, nn.Identity)):
        return "pass"
    if any(True for _ in module.parameters()) or any(True for _ in module.children()):
        return None
    return type(module).__name__.lower() if _acts_pointwise(module) else None


def _acts_pointwise(module: nn.Module) -> bool:
    """Probe: a channel's result must not change when the other channels go away."""
    x = torch.linspace(-3.0, 3.0, 24, dtype=torch.float64).reshape(2, 12)
    some = [1, 4, 9]
    try:
        whole, part = module(x), module(x[:, some])
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    return isinstance(whole, torch.Tensor) and whole.shape == x.shape and torch.equal(whole[:, some], part)
