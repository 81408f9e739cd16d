"""Which kinds of sites a block does not have, and why: what edits cannot act on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from torch import fx, nn

from umcompress.graph.branches import Branch, is_mixture, unknown_additions
from umcompress.graph.sites import AttentionSite, ExpertSite, FeedForwardSite
from umcompress.graph.trace import ATTENTION, is_attention, is_leaf, module_of


@dataclass(frozen=True)
class Gap:
    """A kind of site that a block has none of. `component`: of the branch, else of the block."""

    path: str
    stack: str
    index: int
    component: str
    kind: Literal["branches", "attention", "feed_forward"]
    reason: str


@runtime_checkable
class ExplainingFamily(Protocol):
    """A family that can say why it does not know the heads of an attention."""

    def why_no_heads(self, module: nn.Module) -> str: ...


@runtime_checkable
class ExplainsChannels(Protocol):
    """A family that can say why channels of a feed-forward inside of an attention cannot be cut."""

    def why_no_channels(self, module: nn.Module) -> str: ...


@dataclass(frozen=True)
class Sites:
    """What was found in a block."""

    branches: Sequence[Branch]
    attentions: Sequence[AttentionSite]
    feed_forwards: Sequence[FeedForwardSite]
    experts: Sequence[ExpertSite]


def reasons(
    graph: fx.Graph, block: nn.Module, found: Sites, family: object
) -> Iterator[tuple[Literal["branches", "attention", "feed_forward"], str | None, str]]:
    """(kind, component, reason) of every kind of site that a traced block lacks; component None: the block's."""
    leaves = [module for node in graph.nodes if (module := module_of(block, node)) is not None]
    mixers = [module for module in leaves if is_attention(module)]
    kinds = {branch.kind for branch in found.branches}
    if not kinds:
        yield "branches", None, "what the block adds to its stream was not found: it can be dropped as a whole"
    elif mixers and "attention" not in kinds:
        own = type(mixers[0]).__name__
        yield "branches", None, f"what {own} adds to the stream was not found: it goes with its block only"
    if kinds:
        for held in unknown_additions(graph, block, found.branches):
            yield "branches", None, _why_no_branch(held)
    if not found.attentions:
        component = next((b.component for b in found.branches if b.kind == "attention"), None)
        for reason in dict.fromkeys(_why_no_heads(module, family) for module in mixers):
            yield "attention", component, reason
    if isinstance(family, ExplainsChannels):
        for said in dict.fromkeys(family.why_no_channels(module) for module in mixers):
            if said:
                yield "feed_forward", None, said
    taken = {site.component for site in found.feed_forwards} | {site.component for site in found.experts}
    for branch in found.branches:
        if branch.kind == "feed_forward" and branch.component not in taken:
            yield "feed_forward", branch.component, _why_no_channels(branch, block)


def _why_no_branch(held: Sequence[nn.Module]) -> str:
    names = ", ".join(dict.fromkeys(type(module).__name__ for module in held))
    closed = [type(module).__name__ for module in held if not is_leaf(module)]
    why = f"; {closed[0]} asks for values where it could be looked into" if closed else ""
    return f"what {names} add to the stream is no branch that is known{why}: it goes with its block only"


def _why_no_heads(module: nn.Module, family: object) -> str:
    name = type(module).__name__
    if not ATTENTION.search(name):
        return f"{name} is no attention whose heads are known"
    said = family.why_no_heads(module) if isinstance(family, ExplainingFamily) else ""
    return f"the heads of {name} are not known: {said}" if said else f"the heads of {name} are not known"


def _why_no_channels(branch: Branch, block: nn.Module) -> str:
    own = [module for node in branch.own if (module := module_of(block, node)) is not None]
    experts = next((type(module).__name__ for module in own if is_mixture(module)), None)
    if experts is not None:
        return f"its experts are {experts}, whose channels are not cut"
    return "its inner channels cannot be followed through the graph"
