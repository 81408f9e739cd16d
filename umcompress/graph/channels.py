"""Find feed-forward channels that can be sliced together: dependency groups, found by abstract interpretation.

A Linear's output starts a group on its last axis, pointwise functions propagate it, a product of two grouped
values merges their groups, a Linear's input ends it. A chunk cuts a new group into parts, which must be merged again
before the end. Any other use of a group freezes it. So gated, fused and ungated feed-forwards need no cases of their
own: they have two producers, one producer named twice, and one.

A linear may read several groups side by side, as that of a block which adds attention and feed-forward as one: each has
its columns there. What an attention gives whose heads such a linear reads is a group without producers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from umcompress.graph.guards import is_guard
from umcompress.graph.halves import halves
from umcompress.graph.linears import input_size, is_matrix, output_size
from umcompress.graph.protocol import StreamAttention, has_streams
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
    starts: the first column of each consumer.  attention: the leaf whose heads these are.
    """

    width: int
    producers: list[str] = field(default_factory=list)
    consumers: list[str] = field(default_factory=list)
    starts: set[int] = field(default_factory=set)
    beside_others: bool = False
    attention: str = ""
    activation: str = "identity"
    frozen: bool = False


def channel_groups(graph: fx.Graph, block: nn.Module) -> tuple[ChannelGroup, ...]:
    """Groups that can be sliced: not frozen, with producers and exactly one consumer."""
    return tuple(group for group in _groups(graph, block) if group.producers)


def head_groups(graph: fx.Graph, block: nn.Module) -> dict[str, ChannelGroup]:
    """Attention without a linear for its output -> its heads' channels, where one linear of the block reads them."""
    return {group.attention: group for group in _groups(graph, block) if group.attention}


def _groups(graph: fx.Graph, block: nn.Module) -> tuple[ChannelGroup, ...]:
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
        # Groups that lie side by side in one value; None: channels of which nothing is known.
        self.joined: dict[fx.Node, list[ChannelGroup | None]] = {}
        self.halves, self.sizes = halves(graph)
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
        known = not group.frozen and bool(group.producers or group.attention) and len(set(group.consumers)) == 1
        if not known or len(group.starts) != 1 or len(group.consumers) != self.calls[group.consumers[0]]:
            return False
        group.consumers = group.consumers[:1]
        return True

    def visit(self, node: fx.Node) -> None:
        module = module_of(self.block, node)
        if is_guard(node) or is_fact(node) or node in self.sizes:
            return
        if is_matrix(module):
            self._linear(node, module)
        elif (part := self._part(node)) is not None:
            self.value[node] = part
        elif call_name(node) == "cat" and self._joins(node):
            return
        elif call_name(node) == "chunk" and (parts := self._chunk(node)):
            self.parts[node] = parts
        elif activation := _pointwise(node, module):
            self._pass_on(node, activation)
        elif call_name(node) in _PRODUCTS and len(node.args) == 2:
            self._product(node)
        else:
            for used in node.all_input_nodes:
                for group in self.held(used):
                    self._freeze(group)
            if (width := _width_of_heads(module)) is not None:
                self.value[node] = ChannelGroup(width, attention=str(node.target))
                self.groups.append(self.value[node])

    def held(self, node: fx.Node) -> list[ChannelGroup]:
        """All groups in a value."""
        group = self.of(node)
        return [self.root(one) for one in self.joined.get(node, []) if one] + ([] if group is None else [group])

    def _joins(self, node: fx.Node) -> bool:
        """Whether groups are put side by side, or tokens of one group behind each other."""
        parts, axis = node.args[0], node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        if not isinstance(parts, (list, tuple)):
            return False
        groups = [self.of(part) for part in parts]
        known = [group for group in groups if group is not None]
        if not known:
            return False
        if axis == 1 and len(known) == len(groups) and len({id(group) for group in known}) == 1:
            self.value[node] = known[0]
            return True
        # Of (batch, tokens, channels). The linear that reads them is to be as wide as all of them.
        if axis not in (2, -1) or len({id(group) for group in known}) < len(known):
            return False
        self.joined[node] = groups
        return True

    def _freeze(self, group: ChannelGroup | None) -> None:
        if group is not None:
            group.frozen = True

    def _chunk(self, node: fx.Node) -> tuple[ChannelGroup, ...]:
        """Split the group of a linear's output into equal parts, where that is what the chunk does."""
        source, (count, axis) = node.args[0], _chunking(node)
        if not isinstance(source, fx.Node) or len(source.users) != 1 or axis != -1:
            return ()
        return self._split(source, count) if all(call_name(user) == "getitem" for user in node.users) else ()

    def _split(self, source: fx.Node, count: int | None) -> tuple[ChannelGroup, ...]:
        """Equal parts of the group of a linear's output, which is read as these parts only."""
        group = self.of(source)
        if group is None or group.frozen or not is_matrix(module_of(self.block, source)):
            return ()
        if count is None or group.width % count:
            return ()
        group.frozen = True
        parts = tuple(ChannelGroup(group.width // count, list(group.producers)) for _ in range(count))
        self.groups += parts
        self.fused.append(parts)
        return parts

    def _part(self, node: fx.Node) -> ChannelGroup | None:
        """The part of a chunk that `getitem` selects, or a half; of an attention, what it gives to one stream."""
        if node in self.halves:
            source, place = self.halves[node]
            self.parts[source] = self.parts.get(source) or self._split(source, 2)
            return self.parts[source][place] if self.parts[source] else None
        if call_name(node) != "getitem" or not isinstance(node.args[0], fx.Node) or not isinstance(node.args[1], int):
            return None
        whole = self.of(node.args[0])
        if whole is not None and whole.attention and module_of(self.block, node.args[0]) is not None:
            return whole
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
        read = node.args[0] if node.args else None
        if isinstance(read, fx.Node) and read in self.joined:
            self._read_beside(name, [group and self.root(group) for group in self.joined[read]], input_size(module))
        elif (source := self.of(read)) is not None:
            source.consumers.append(name)
            source.starts.add(0)
        if name not in self.made:
            self.made[name] = ChannelGroup(output_size(module), producers=[name])
            self.groups.append(self.made[name])
        self.value[node] = self.made[name]

    @staticmethod
    def _read_beside(name: str, sources: list[ChannelGroup | None], width: int) -> None:
        """A linear reads groups side by side: counted from the left, and behind unknown channels from the right."""
        known = [source for source in sources if source is not None]
        total = sum(source.width for source in known)
        fits = total == width if len(known) == len(sources) else total < width
        first = sources.index(None) if None in sources else len(sources)
        last = len(sources) - 1 - sources[::-1].index(None) if None in sources else -1
        for place, source in enumerate(sources):
            if source is None:
                continue
            left = sum(one.width for one in sources[:place] if one is not None)
            right = width - sum(one.width for one in sources[place:] if one is not None)
            source.consumers.append(name)
            source.starts.add(left if place < first else right)
            source.beside_others = True
            source.frozen |= not fits or first < place < last

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
                left.starts |= right.starts
                left.beside_others |= right.beside_others
                left.attention = left.attention or right.attention
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


def _width_of_heads(module: nn.Module | None) -> int | None:
    """The channels that an attention gives whose heads are read by a linear outside of it."""
    if not has_streams(module) or not isinstance(module, StreamAttention):
        return None
    layouts = [module.stream(component) for component in module.stream_components]
    if len(layouts) != 1 or layouts[0] is None or layouts[0].output:
        return None
    return layouts[0].query_heads * layouts[0].head_dim


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
