"""Remove everything that one task never reads, for those who deploy that task alone.  What it computes stays.

What is read is found by running the task once: parts of the model that none of its tokens goes through and none of its
results depends on go, and so do heads and feed-forwards whose output reaches nothing.  What a family says is there for
the task stays, also where that run has no need of it (the encoder of the pictures that it paints, to train on).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, cast

from pydantic import Field

from umcompress.extend import (
    BlockSite,
    Component,
    DropBranch,
    DropModule,
    Edit,
    Evidence,
    Pass,
    Plan,
    PlanError,
    Proposal,
    Statistics,
    Task,
)

if TYPE_CHECKING:
    from torch import nn

    from umcompress.extend import ModelGraph


class Specialize(Pass):
    """Keep one task, bit for bit, and remove what it never reads."""

    name: ClassVar[str] = "specialize"
    task: Task = Field(description="the task that stays; the model refuses the other")

    def plan(self, graph: ModelGraph, statistics: Statistics) -> Proposal:
        unread = graph.unread(self.task)
        modules = self._modules(graph, unread.names, unread.runs_in_vain)
        edits: list[Edit] = [*self._branches(graph, unread.names), *modules]
        if not any(isinstance(edit, DropModule) for edit in edits):
            raise PlanError(
                f"{self.name}: task {self.task}", "no part of the model is there for another task only",
                "leave the step out: the model does one task, or shares all its parts",
            )  # fmt: skip
        evidence = tuple(
            Evidence(site=edit.module, component=graph.family.component_of(edit.module), note="never read")
            for edit in edits if isinstance(edit, DropModule)
        )  # fmt: skip
        return Proposal(Plan(pass_name=self.name, edits=tuple(edits), evidence=evidence))

    def _branches(self, graph: ModelGraph, unread: frozenset[str]) -> Iterator[Edit]:
        """Streams of the other task in blocks that stay, and feed-forwards whose output reaches nothing."""
        for block in graph.blocks(stack="all"):
            for component in sorted(block.components - {self.task}) if block.has_streams else ():
                own, idle = _names(graph, block, component), _idle(graph, block, unread)
                for branch in block.branches:
                    last = branch.kind == "feed_forward" and component in idle
                    if branch.component == component and (last or own <= unread):
                        part = cast(Component, component)
                        yield DropBranch(block=block.path, branch=branch.kind, component=part)

    def _modules(
        self, graph: ModelGraph, unread: frozenset[str], runs_in_vain: frozenset[str]
    ) -> Iterator[DropModule]:
        """The largest modules of which nothing is read; blocks of a stack that is read stay."""
        from torch import nn

        blocks = {block.path for block in graph.blocks(stack="all")}

        def walk(path: str, module: nn.Module) -> Iterator[DropModule]:
            names = {f"{path}.{name}" if path else name for name, _ in module.named_parameters(remove_duplicate=False)}
            if path in blocks or not names & unread:
                return
            # A list is asked for its modules, which what stands in its place would not have.
            if path and names <= unread and not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
                yield DropModule(module=path, task=self.task, runs=path in runs_in_vain)
                return
            for name, child in module.named_children():
                yield from walk(f"{path}.{name}" if path else name, child)

        yield from walk("", graph.model)


def _idle(graph: ModelGraph, block: BlockSite, unread: frozenset[str]) -> set[str]:
    """Components whose feed-forward in a block computes for nobody."""
    sites = (site for site in graph.feed_forwards(stack=block.stack) if site.block == block.path)
    return {s.component for s in sites if {f"{path}.weight" for path in (*s.producers, s.consumer)} <= unread}


def _names(graph: ModelGraph, block: BlockSite, component: str) -> frozenset[str]:
    """The parameters of one stream of a block."""
    every = graph.model.get_submodule(block.path).named_parameters()
    names = (f"{block.path}.{name}" for name, _ in every)
    return frozenset(name for name in names if graph.family.component_of(name) == component)
