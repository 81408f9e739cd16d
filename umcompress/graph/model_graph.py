"""The traced model: every stack's blocks with their graphs, and the sites found in them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor, fx, nn

from umcompress.documents.base import Task
from umcompress.errors import ModelError, UsageError, did_you_mean
from umcompress.graph.block_graph import BlockGraph, read_block
from umcompress.graph.branches import is_mixture
from umcompress.graph.expert_place import SplitPlace, split_place
from umcompress.graph.linears import is_conv1d
from umcompress.graph.not_found import Gap
from umcompress.graph.sites import AttentionSite, BlockSite, BranchKind, BranchSite, ExpertSite, FeedForwardSite


class ModelFamily(Protocol):
    """The part of a model family that a graph cannot know."""

    @property
    def main_stack(self) -> str: ...

    def stacks(self, model: nn.Module) -> dict[str, str]: ...

    def component_of(self, path: str) -> str: ...


@runtime_checkable
class SeveralMainStacks(Protocol):
    """A family of models in several parts, each with a stack that steps mean by default."""

    def main_stacks(self, model: nn.Module) -> Collection[str]: ...


class _InStack(Protocol):
    @property
    def stack(self) -> str: ...
    @property
    def index(self) -> int: ...


class _InBlock(Protocol):
    @property
    def block(self) -> str: ...
    @property
    def component(self) -> str: ...


Site = TypeVar("Site", bound=_InStack)
Read = Callable[[str], Tensor]


class ModelGraph:
    """Sites of a model, narrowed by component, stack (None: the main one; "all") and layers.

    `shared` means what serves every task: parts of that component, and all parts of blocks with several streams.
    A graph is a picture of the model at one moment: after a rewrite, trace again.
    """

    def __init__(
        self, model: nn.Module, family: ModelFamily, blocks: Iterable[BlockGraph], read: Read | None = None
    ) -> None:
        self.model, self._values = model, read
        self.family = family
        self.stacks = family.stacks(model)
        self._blocks = {block.site.path: block for block in blocks}

    def on(self, model: nn.Module) -> ModelGraph:
        """The same sites of another model of the structure that was traced."""
        return ModelGraph(model, self.family, self._blocks.values())

    def blocks(
        self, component: str | None = None, stack: str | None = None, layers: Set[int] | None = None
    ) -> tuple[BlockSite, ...]:
        """Blocks, in depth order; a block belongs to every component that one of its branches belongs to."""
        found = self._narrow((b.site for b in self._blocks.values()), stack, layers)
        return tuple(site for site in found if component is None or site.serves(component))

    def branches(
        self,
        kind: BranchKind | None = None,
        component: str | None = None,
        stack: str | None = None,
        layers: Set[int] | None = None,
    ) -> tuple[BranchSite, ...]:
        """Residual branches, in depth order."""
        every = (site for b in self._blocks.values() for site in b.site.branches)
        found = self._narrow(every, stack, layers)
        wanted = (site for site in found if kind is None or site.kind == kind)
        return tuple(site for site in wanted if self._serves(site, component))

    def attentions(
        self, component: str | None = None, stack: str | None = None, layers: Set[int] | None = None
    ) -> tuple[AttentionSite, ...]:
        """Streams of attentions that follow the protocol, in depth order."""
        found = self._narrow((s for b in self._blocks.values() for s in b.attentions), stack, layers)
        return tuple(site for site in found if self._serves(site, component))

    def feed_forwards(
        self, component: str | None = None, stack: str | None = None, layers: Set[int] | None = None
    ) -> tuple[FeedForwardSite, ...]:
        """Groups of feed-forward channels, in depth order. Feed-forwards that were split are not among them."""
        found = self._narrow((s for b in self._blocks.values() for s in b.feed_forwards), stack, layers)
        return tuple(site for site in found if self._serves(site, component))

    def experts(
        self, component: str | None = None, stack: str | None = None, layers: Set[int] | None = None
    ) -> tuple[ExpertSite, ...]:
        """Feed-forwards that were split into experts, in depth order."""
        found = self._narrow((s for b in self._blocks.values() for s in b.experts), stack, layers)
        return tuple(site for site in found if self._serves(site, component))

    def gaps(self, stack: str = "all") -> tuple[Gap, ...]:
        """Kinds of sites that blocks do not have, and why, in depth order."""
        return self._narrow((gap for b in self._blocks.values() for gap in b.gaps), stack, None)

    def is_mixture(self, site: BranchSite) -> bool:
        """Whether a branch has experts, the model's own or split ones."""
        block = self.model.get_submodule(site.block)
        own = (
            b.own for b in self.block(site.block).branches
            if (b.kind, b.component) == (site.kind, site.component) and site.part in ("", b.part)
        )
        nodes = (node for part in own for node in part if node.op == "call_module")
        return any(is_mixture(block.get_submodule(str(node.target))) for node in nodes)

    def split_place(self, site: FeedForwardSite) -> SplitPlace | str:
        """Where the experts of a feed-forward would go; or a sentence that says why it cannot be split."""
        return split_place(self.block(site.block).graph, self.model.get_submodule(site.block), site)

    def weight(self, name: str) -> Tensor:
        """A parameter or buffer by name, detached. Read it, never write it. A skeleton's is read from its files."""
        path, _, leaf = name.rpartition(".")
        value = getattr(self.model.get_submodule(path), leaf)
        if self._values is not None and isinstance(value, Tensor) and value.is_meta:
            return self._as_rows(path, leaf, self._values(name))
        if not isinstance(value, Tensor):
            raise UsageError(f"read the tensor {name}", f"a {type(value).__name__}")
        return self._as_rows(path, leaf, value.detach())

    def producer_weights(self, site: FeedForwardSite) -> tuple[Tensor, ...]:
        """The weights of a feed-forward's producers, (width, in) each; a fused one is split into its parts."""
        parts: list[Tensor] = []
        for path in dict.fromkeys(site.producers):
            parts += self.weight(f"{path}.weight").chunk(site.producers.count(path))
        return tuple(parts)

    def consumer_weight(self, site: FeedForwardSite) -> Tensor:
        """What the last linear of a feed-forward does to its channels, (out, width)."""
        columns = slice(site.consumer_start, site.consumer_start + site.width)
        return self.weight(f"{site.consumer}.weight")[:, columns]

    def value_weight(self, site: AttentionSite) -> Tensor:
        """The weight of an attention's value projection, (groups * head_dim, in)."""
        rows = [first + row for first in site.value_rows for row in range(site.head_dim)]
        return self.weight(f"{site.value}.weight")[rows]

    def value_weights(self, site: AttentionSite) -> tuple[Tensor, ...]:
        """The same for every stream that has these heads."""
        return (self.value_weight(site), *(self.weight(f"{value}.weight") for value, _ in site.joined))

    def output_weights(self, site: AttentionSite) -> tuple[Tensor, ...]:
        """What the output projection of every stream does to the heads, (out, heads * head_dim) each."""
        width = site.query_heads * site.head_dim
        return tuple(self.weight(f"{path}.weight")[:, start : start + width] for path, start in site.outputs)

    def _as_rows(self, path: str, leaf: str, value: Tensor) -> Tensor:
        """The weight as (out, in), whatever the layout of the module."""
        return value.t() if leaf == "weight" and is_conv1d(self.model.get_submodule(path)) else value

    def unread(self, task: Task) -> Unread:
        """What a task does not depend on, found by running it on shapes.  ModelError where its family cannot."""
        if not isinstance(self.family, TaskReadingFamily):
            raise ModelError(f"find what {task} reads", "this family of models has no run for it", "leave the step out")
        names = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        read = self.family.read_in(self.model, task)
        idle = {path for path, of in self.family.not_read(self.model).items() if of == task} | read.runs_in_vain
        behind = tuple(f"{path}." for path in idle)
        return Unread(frozenset(names - read.names | {n for n in names if n.startswith(behind)}), read.runs_in_vain)

    def block_graph(self, path: str) -> fx.Graph:
        """A copy of a block's graph, free to be instrumented. ModelError where it could not be traced."""
        found = self.block(path)
        if found.untraced is not None:
            raise found.untraced
        return copy.deepcopy(found.graph)

    def block(self, path: str) -> BlockGraph:
        """A block with its graph and branches; UsageError with the nearest path if there is none."""
        if path not in self._blocks:
            raise UsageError(f"find the block {path}", "no such block", did_you_mean(path, self._blocks))
        return self._blocks[path]

    def _serves(self, site: _InBlock, component: str | None) -> bool:
        """Whether a site is meant by `component`; None means every one."""
        joint = component == "shared" and self._blocks[site.block].site.has_streams
        return joint or component in (None, site.component)

    def _narrow(self, sites: Iterable[Site], stack: str | None, layers: Set[int] | None) -> tuple[Site, ...]:
        if stack is None and isinstance(self.family, SeveralMainStacks):
            mains = self.family.main_stacks(self.model)
            chosen = (site for site in sites if site.stack in mains)
            return tuple(site for site in chosen if layers is None or site.index in layers)
        stack = self.family.main_stack if stack is None else stack
        if stack != "all" and stack not in self.stacks:
            hint = did_you_mean(stack, [*self.stacks, "all"])
            raise UsageError(f"select stack {stack!r}", "no such stack", hint)
        chosen = (site for site in sites if stack in ("all", site.stack))
        return tuple(site for site in chosen if layers is None or site.index in layers)


def trace_model(model: nn.Module, family: ModelFamily, read: Read | None = None) -> ModelGraph:
    """Trace every block of every stack and find its sites.

    A block that cannot be traced can only be dropped as a whole: see `ModelGraph.gaps`.

    read: where the graph of a skeleton finds the values of its parameters.
    """
    blocks = []
    for stack, path in family.stacks(model).items():
        modules = model.get_submodule(path)
        assert isinstance(modules, nn.ModuleList)
        for index, block in enumerate(modules):
            blocks.append(read_block(block, f"{path}.{index}", stack, index, family))
    return ModelGraph(model, family, blocks, read)


@dataclass(frozen=True)
class TaskReads:
    """What a task reads.  names: parameters.  runs_in_vain: modules outside of blocks that run, and can be taken away
    all the same, as nothing looks at what comes out of them."""

    names: frozenset[str]
    runs_in_vain: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Unread:
    """Parameters that a task does not depend on; of these, the modules that run, see `TaskReads`."""

    names: frozenset[str]
    runs_in_vain: frozenset[str] = frozenset()


@runtime_checkable
class TaskReadingFamily(Protocol):
    """A family that can run a task without its words and values, to see what it reads."""

    def read_in(self, model: nn.Module, task: Task) -> TaskReads:
        """What a task depends on.  ModelError where the model does not do the task, or nothing but the task."""

    def not_read(self, model: nn.Module) -> Mapping[str, Task]:
        """Module path -> the task whose result does not depend on what the module computes, though it runs."""


@runtime_checkable
class BlockCountingFamily(Protocol):
    """A family whose models hold numbers of blocks outside the blocks (configuration, other modules)."""

    def check_removable(self, model: nn.Module, removed: Mapping[str, Sequence[int]]) -> None:
        """PlanError where one of these blocks has to stay. removed: stack -> positions. Changes nothing."""

    def update_block_counts(self, model: nn.Module, removed: Mapping[str, Sequence[int]]) -> None:
        """Update these numbers, on a live model or a skeleton. removed: stack -> former positions of removed blocks."""
