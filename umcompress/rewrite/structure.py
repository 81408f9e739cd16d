"""The structure half of an edit: what happens to graphs, modules and shapes.

It runs the same on a live model and on a skeleton. A parameter whose shape changes becomes an empty one on
the meta device, and what its value is to be goes into the TensorMap; nothing here reads a weight.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx, nn

from umcompress.checkpoint.layout import tied_names
from umcompress.documents.plan import (
    DropBlock,
    DropBranch,
    DropModule,
    KeepChannels,
    KeepHeads,
    Plan,
    SetTensors,
    SplitExperts,
)
from umcompress.graph.branches import Branch, find_branches
from umcompress.graph.guards import checks_used_value, is_guard
from umcompress.graph.linears import MatrixModule, input_size, is_conv1d, is_matrix, output_axis, output_size, set_sizes
from umcompress.graph.lower import lower
from umcompress.graph.model_graph import BlockCountingFamily, ModelFamily
from umcompress.graph.optional_outputs import detach_attention, is_optional_output, without_optional_outputs
from umcompress.graph.protocol import StreamAttention, StreamLayout
from umcompress.rewrite.check import Blocks, check_plan
from umcompress.rewrite.experts import split
from umcompress.rewrite.nn.absent import Absent
from umcompress.rewrite.tensors import TensorMap


def reshape(model: nn.Module, family: ModelFamily, plan: Plan, number: int, tensors: TensorMap) -> None:
    """Apply the structure half of plan `number` and note in `tensors` what becomes of each tensor.

    Raises PlanError, before anything has changed, when the plan does not fit the model.
    """
    blocks = Blocks(model, family)
    check_plan(blocks, plan)
    work = _StructureEdits(blocks, number, tensors)
    for edit in plan.edits:
        if isinstance(edit, DropBlock):
            work.removed.add(edit.block)
        elif isinstance(edit, DropBranch):
            work.drop_branch(edit)
        elif isinstance(edit, DropModule):
            work.drop_module(edit)
        elif isinstance(edit, KeepHeads):
            work.keep_heads(edit)
        elif isinstance(edit, KeepChannels):
            work.keep_channels(edit)
        elif isinstance(edit, SplitExperts):
            work.split_experts(edit)
        else:
            assert isinstance(edit, SetTensors)
            work.set_tensors(edit)
    work.finish()


# Other attribute names under which modules hold the number of their layer.
LAYER_NUMBERS = ("layer_id", "layer_number", "layer_index", "block_idx")


class _StructureEdits:
    def __init__(self, blocks: Blocks, number: int, tensors: TensorMap) -> None:
        self.blocks, self.number, self.tensors = blocks, number, tensors
        self.model = blocks.model
        self.graphs: dict[str, fx.Graph] = {}
        self.removed: set[str] = set()
        # Of a linear that lost columns: those that stayed, as places before the plan.
        self.columns: dict[str, tuple[int, ...]] = {}

    def drop_branch(self, edit: DropBranch) -> None:
        block = self.model.get_submodule(edit.block)
        graph = self._graph(edit.block)
        before = _references(graph)
        while (branch := self._branch(graph, block, edit)) is not None:
            self._take_out(graph, block, branch, edit.component)
        delete_unused(block, before, _references(graph))

    def _graph(self, block: str) -> fx.Graph:
        """The graph of a block, to be changed: equal blocks may have been read as one."""
        if block not in self.graphs:
            self.graphs[block] = copy.deepcopy(self.blocks.read(block).graph)
        return self.graphs[block]

    def _branch(self, graph: fx.Graph, block: nn.Module, edit: DropBranch) -> Branch | None:
        """A branch that an edit means. Found anew, as what went before may have taken nodes out of this graph."""
        branches = find_branches(graph, block, edit.block, self.blocks.family.component_of)
        alike = (b for b in branches if (b.kind, b.component) == (edit.branch, edit.component))
        return next((b for b in alike if edit.part in ("", b.part)), None)

    def _take_out(self, graph: fx.Graph, block: nn.Module, branch: Branch, component: str) -> None:
        branch.add.replace_all_uses_with(branch.stream)
        graph.erase_node(branch.add)
        if branch.leaf is not None and branch.kind == "attention":
            detach_attention(graph, branch.leaf, block.get_submodule(str(branch.leaf.target)))
        remove_dead(graph)
        if branch.leaf is not None and branch.leaf in graph.nodes:
            self._leave_joint_attention(block, branch.leaf, component)
            remove_dead(graph)

    def drop_module(self, edit: DropModule) -> None:
        owner, _, name = edit.module.rpartition(".")
        setattr(self.model.get_submodule(owner), name, Absent(edit.module, edit.task, edit.runs))
        self.tensors.forget(edit.module)

    @staticmethod
    def _leave_joint_attention(block: nn.Module, leaf: fx.Node, component: str) -> None:
        """Take one stream out of an attention that goes on for the others."""
        attention = block.get_submodule(str(leaf.target))
        if not isinstance(attention, StreamAttention) or len(attention.stream_components) < 2:
            return
        leaf.update_arg(attention.stream_components.index(component), None)
        attention.drop_stream(component)

    def keep_heads(self, edit: KeepHeads) -> None:
        attention = self.model.get_submodule(edit.site)
        assert isinstance(attention, StreamAttention)
        layout = attention.stream(edit.component)
        assert layout is not None
        groups, heads = edit.key_value_groups, edit.query_heads
        kept = _heads_of_groups(layout, groups) if groups is not None else heads or ()
        if len(kept) == layout.query_heads:
            return
        query = _rows_of_heads(kept, layout.head_dim)
        site = self.blocks.attention(edit.site, edit.component)
        every = groups if groups is not None else tuple(range(layout.key_value_groups))
        for name, rows in layout.kept_rows(every, kept).items():
            self._narrow(f"{edit.site}.{name}", rows=rows)
        for output, start in site.outputs:
            self._narrow_inputs(output, start, site.query_heads * site.head_dim, query)
        for name, kind in layout.head_norms:
            self._narrow_norm(f"{edit.site}.{name}", kept if kind == "query" else every)
        for name, kind in layout.norm_lists:
            self._keep_modules(f"{edit.site}.{name}", kept if kind == "query" else every)
        attention.keep_heads(edit.component, groups, heads)

    def _narrow_norm(self, path: str, heads: tuple[int, ...]) -> None:
        """Keep the rows of these heads in a norm with a row of weights for each head."""
        norm = self.model.get_submodule(path)
        for name, parameter in list(norm.named_parameters(recurse=False)):
            if len(heads) < parameter.shape[0]:
                self._take(path, norm, name, 0, heads)

    def _keep_modules(self, path: str, stay: tuple[int, ...]) -> None:
        """Keep these modules of a ModuleList; the others are deleted with their tensors."""
        modules = self.model.get_submodule(path)
        assert isinstance(modules, nn.ModuleList)
        for index in sorted(set(range(len(modules))) - set(stay), reverse=True):
            self.tensors.forget(f"{path}.{index}")
            del modules[index]
        self.tensors.rename({f"{path}.{old}": f"{path}.{new}" for new, old in enumerate(stay) if new != old})

    def keep_channels(self, edit: KeepChannels) -> None:
        site = self.blocks.feed_forward(edit.site)
        for producer, times in Counter(site.producers).items():
            width = output_size(self._linear(producer)) // times
            rows = tuple(part * width + row for part in range(times) for row in edit.keep)
            self._narrow(producer, rows=rows)
        self._narrow_inputs(site.consumer, site.consumer_start, site.width, edit.keep)
        consumer = self._linear(site.consumer)
        if edit.bias and consumer.bias is None:
            shape, dtype = (output_size(consumer),), consumer.weight.dtype
            consumer.bias = _empty_parameter(shape, consumer.weight)
            self.tensors.zeros(f"{site.consumer}.bias", shape, dtype)

    def split_experts(self, edit: SplitExperts) -> None:
        site = self.blocks.feed_forward(edit.site)
        block = self.model.get_submodule(site.block)
        graph = self._graph(site.block)
        before = _references(graph)
        own = self._own(site.consumer, site.consumer_start, site.width)
        place = split(graph, block, site, edit, self.tensors, own)
        if site.shared_consumer:
            self._narrow_inputs(site.consumer, site.consumer_start, site.width, ())
        remove_dead(graph)
        # Names in the module that made way may be names in the new one.
        outside = [target for target in before if not f"{target}.".startswith(f"{place}.")]
        delete_unused(block, outside, _references(graph))

    def set_tensors(self, edit: SetTensors) -> None:
        """Set tensors from the values of the plan; a tied parameter changes under all its names."""
        tied = tied_names(self.model)
        for name in edit.names:
            first = tied.get(name, name)
            for other in (first, *(n for n, owner in tied.items() if owner == first)):
                self.tensors.blob(other, self.number, name)
                if other.endswith(".weight") and is_conv1d(self.model.get_submodule(other.rpartition(".")[0])):
                    self.tensors.flip(other)

    def _linear(self, path: str) -> MatrixModule:
        linear = self.model.get_submodule(path)
        assert is_matrix(linear)
        return linear

    def _columns(self, path: str) -> tuple[int, ...]:
        """Of the inputs that a linear has now, the places before the plan."""
        return self.columns.get(path) or tuple(range(input_size(self._linear(path))))

    def _own(self, path: str, start: int, width: int) -> tuple[int, ...]:
        """Where the inputs of a site are now."""
        return tuple(place for place, column in enumerate(self._columns(path)) if start <= column < start + width)

    def _narrow_inputs(self, path: str, start: int, width: int, keep: tuple[int, ...]) -> None:
        """Keep these inputs of those that a site had before the plan, and all that are not the site's."""
        now = self._columns(path)
        own = self._own(path, start, width)
        gone = set(own).difference(own[channel] for channel in keep)
        stay = tuple(place for place in range(len(now)) if place not in gone)
        self.columns[path] = tuple(now[place] for place in stay)
        self._narrow(path, columns=stay)

    def _narrow(
        self, path: str, rows: tuple[int, ...] | None = None, columns: tuple[int, ...] | None = None
    ) -> None:
        """Keep these outputs or inputs of a linear. Keeping all of them changes nothing."""
        linear = self._linear(path)
        axis = output_axis(linear)
        if rows is not None and len(rows) < output_size(linear):
            set_sizes(linear, gives=len(rows))
            self._take(path, linear, "weight", axis, rows)
            if linear.bias is not None:
                self._take(path, linear, "bias", 0, rows)
        if columns is not None and len(columns) < input_size(linear):
            set_sizes(linear, takes=len(columns))
            self._take(path, linear, "weight", 1 - axis, columns)

    def _take(self, path: str, module: nn.Module, name: str, dim: int, index: tuple[int, ...]) -> None:
        old = getattr(module, name)
        shape = (*old.shape[:dim], len(index), *old.shape[dim + 1 :])
        setattr(module, name, _empty_parameter(shape, old))
        self.tensors.take(f"{path}.{name}", dim, index)

    def finish(self) -> None:
        """Lower the changed graphs, then remove dropped blocks and those without branches, and renumber the rest."""
        for path, graph in self.graphs.items():
            if is_identity(graph):
                self.removed.add(path)
            else:
                lower(self.model.get_submodule(path), graph)
        self.tensors.keep_only(self.model.state_dict(keep_vars=True))
        gone = {
            stack: self._renumber(stack, path) for stack, path in self.blocks.stacks.items()
            if any(block.rpartition(".")[0] == path for block in self.removed)
        }  # fmt: skip
        self.tensors.keep_only(self.model.state_dict(keep_vars=True))
        if isinstance(self.blocks.family, BlockCountingFamily):
            self.blocks.family.update_block_counts(self.model, gone)

    def _renumber(self, stack: str, path: str) -> list[int]:
        """Delete removed blocks from a stack and renumber the rest; returns the positions that were removed."""
        modules = self.blocks.modules(stack)
        gone = [i for i in range(len(modules)) if f"{path}.{i}" in self.removed]
        stay = [i for i in range(len(modules)) if i not in gone]
        moved = {f"{path}.{i}": f"{path}.#{i}" for i in gone}
        moved |= {f"{path}.{old}": f"{path}.{new}" for new, old in enumerate(stay) if new != old}
        self.tensors.rename(moved)
        for index in reversed(gone):
            del modules[index]
        for index, block in enumerate(modules):
            _set_layer_number(block, index, stay[index])
        return gone


def _set_layer_number(block: nn.Module, index: int, before: int) -> None:
    """Set the layer number in all modules of a block. One with several cache slots has as many consecutive numbers."""
    holders: list[Any] = [module for module in block.modules() if type(vars(module).get("layer_idx")) is int]
    slots = sorted({module.layer_idx for module in holders if module is not block})
    several = len(slots) > 1 and slots == list(range(before * len(slots), (before + 1) * len(slots)))
    for module in holders:
        own = several and module is not block
        module.layer_idx = index * len(slots) + slots.index(module.layer_idx) if own else index
    for part in block.modules():
        for name in LAYER_NUMBERS:
            if vars(part).get(name) == before and type(vars(part)[name]) is int:
                setattr(part, name, index)


def remove_dead(graph: fx.Graph) -> None:
    """Erase calls whose results are not used. Modules are assumed to have no side effects.

    A guard stays if it checks an argument, or a value that something other than guards uses.
    """
    for node in reversed(list(graph.nodes)):
        if node.users or node.op in ("placeholder", "output"):
            continue
        if not is_guard(node) or not checks_used_value(node):
            graph.erase_node(node)


def is_identity(graph: fx.Graph) -> bool:
    """Whether the forward returns its first arguments unchanged, in their order."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    idle = ("placeholder", "output")
    if any(node.op not in idle and not is_guard(node) and not is_optional_output(node) for node in graph.nodes):
        return False
    returned = without_optional_outputs(graph.output_node().args[0])
    outputs = list(returned) if isinstance(returned, (tuple, list)) else [returned]
    return outputs == inputs[: len(outputs)]


def delete_unused(block: nn.Module, before: Iterable[str], after: Iterable[str]) -> None:
    """Delete modules that the graph used before and does not use now, each at the highest level possible."""
    used = set(after)
    for target in before:
        parts = target.split(".")
        paths = [".".join(parts[: end + 1]) for end in range(len(parts))]
        unused = (p for p in paths if not any(u == p or u.startswith(f"{p}.") for u in used))
        path = next(unused, None)
        owner, _, name = (path or "").rpartition(".")
        if path is not None and hasattr(block.get_submodule(owner), name):
            delattr(block.get_submodule(owner), name)


def _references(graph: fx.Graph) -> list[str]:
    return [
        str(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr") and n.target != "training"
    ]


def _empty_parameter(shape: tuple[int, ...], like: torch.Tensor) -> nn.Parameter:
    data = torch.empty(shape, dtype=like.dtype, device="meta")
    return nn.Parameter(data, requires_grad=like.requires_grad)


def _heads_of_groups(layout: StreamLayout, groups: tuple[int, ...]) -> tuple[int, ...]:
    per = layout.query_heads_per_group
    return tuple(group * per + j for group in groups for j in range(per))


def _rows_of_heads(heads: tuple[int, ...], head_dim: int) -> tuple[int, ...]:
    return tuple(head * head_dim + d for head in heads for d in range(head_dim))
