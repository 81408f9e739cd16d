"""A block with its graph, and what is found in it; equal blocks of one list are read once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from umcompress.errors import ModelError
from umcompress.graph.branches import Branch, all_known, common_module, find_branches, told_apart
from umcompress.graph.channels import ChannelGroup, channel_groups, head_groups
from umcompress.graph.lower import lowered_graph
from umcompress.graph.not_found import Gap, Sites, reasons
from umcompress.graph.protocol import RoutedFeedForward, StreamAttention
from umcompress.graph.shared_traces import made_once
from umcompress.graph.sites import AttentionSite, BlockSite, BranchSite, ExpertSite, FeedForwardSite
from umcompress.graph.trace import is_leaf, trace_block

if TYPE_CHECKING:
    from umcompress.graph.model_graph import ModelFamily


@dataclass(frozen=True)
class BlockGraph:
    """A block, its graph, and the sites found in it."""

    site: BlockSite
    graph: fx.Graph
    branches: tuple[Branch, ...]
    attentions: tuple[AttentionSite, ...]
    feed_forwards: tuple[FeedForwardSite, ...]
    experts: tuple[ExpertSite, ...]
    gaps: tuple[Gap, ...] = ()
    # Why the block could not be traced: it is one piece then, which can be dropped.
    untraced: ModelError | None = None


def read_block(block: nn.Module, path: str, stack: str, index: int, family: ModelFamily) -> BlockGraph:
    """Trace one block and find its sites; one that cannot be traced has none.

    Where traces are shared, blocks of one structure in one list have one graph: copy it before you change it.
    """
    if lowered_graph(block) is not None:
        return _read_anew(block, path, stack, index, family)

    def seen() -> Hashable:
        paths = (f"{path}.{name}" if name else path for name, _ in block.named_modules())
        return path.rpartition(".")[0], stack, tuple(map(family.component_of, paths))

    found = made_once(block, is_leaf, seen, lambda: _read_anew(block, path, stack, index, family))
    if found.site.path == path:
        return found
    if found.untraced is not None:
        return _read_anew(block, path, stack, index, family)
    return moved(found, path, index)


def _read_anew(block: nn.Module, path: str, stack: str, index: int, family: ModelFamily) -> BlockGraph:
    component = family.component_of(path)
    try:
        graph = trace_block(block, path)
    except ModelError as error:
        why = f"the block cannot be traced, so it can only be dropped as a whole: {error.found}"
        gap = Gap(path, stack, index, component, "branches", why)
        return BlockGraph(BlockSite(path, stack, index, (), component), fx.Graph(), (), (), (), (), (gap,), error)
    branches = find_branches(graph, block, path, family.component_of)
    parts = told_apart(branches)
    sites = tuple(
        BranchSite(path, stack, index, b.kind, b.component, part) for b, part in zip(branches, parts, strict=True)
    )
    # One attention that adds to several streams is one site.
    sites = tuple(site for place, site in enumerate(sites) if not site.part or site not in sites[:place])
    found = Sites(
        branches,
        tuple(_attention_sites(graph, block, path, stack, index)),
        tuple(_feed_forward_sites(graph, block, path, stack, index, family)),
        tuple(_expert_sites(graph, block, path, stack, index, family)),
    )
    missing = reasons(graph, block, found, family)
    gaps = tuple(Gap(path, stack, index, of or component, kind, reason) for kind, of, reason in missing)
    site = BlockSite(path, stack, index, sites, component, all_known(graph, block, branches))
    return BlockGraph(
        site, graph, branches, tuple(found.attentions), tuple(found.feed_forwards), tuple(found.experts), gaps
    )


def moved(found: BlockGraph, path: str, index: int) -> BlockGraph:
    """What was found in a block, as of another one of its structure, which is there."""
    sites = (found.site, found.attentions, found.feed_forwards, found.experts, found.gaps)
    site, attentions, feed_forwards, experts, gaps = (_moved(part, found.site.path, path, index) for part in sites)
    return replace(
        found, site=site, attentions=attentions, feed_forwards=feed_forwards, experts=experts, gaps=gaps
    )


def _moved(value: Any, before: str, path: str, index: int) -> Any:
    """Sites and module paths of one block as those of another."""
    if isinstance(value, str):
        return path + value[len(before) :] if value == before or value.startswith(f"{before}.") else value
    if isinstance(value, tuple):
        return tuple(_moved(part, before, path, index) for part in value)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    parts = {field.name: _moved(getattr(value, field.name), before, path, index) for field in fields(value)}
    return replace(value, **(parts | {"index": index}))


def _attention_sites(
    graph: fx.Graph, block: nn.Module, path: str, stack: str, index: int
) -> Iterable[AttentionSite]:
    names = dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "call_module")
    outside: dict[str, ChannelGroup] | None = None
    for name in names:
        leaf = block.get_submodule(name)
        if not isinstance(leaf, StreamAttention):
            continue
        for component in leaf.stream_components:
            layout = leaf.stream(component)
            if layout is None:
                continue
            here, start = f"{path}.{name}", 0
            output = f"{here}.{layout.output}"
            if not layout.output:
                outside = head_groups(graph, block) if outside is None else outside
                if name not in outside:
                    continue
                output, (start,) = f"{path}.{outside[name].consumers[0]}", outside[name].starts
            yield AttentionSite(
                here, path, stack, index, component,
                layout.key_value_groups, layout.query_heads_per_group, layout.head_dim, f"{here}.{layout.query}",
                f"{here}.{layout.key}", f"{here}.{layout.value}", output,
                tuple(layout.first_row(layout.value_start, group) for group in range(layout.key_value_groups)),
                max(1, layout.bundles), start,
                tuple((f"{here}.{s.value}", f"{here}.{s.output}" if s.output else "") for s in layout.joined),
            )  # fmt: skip


def _feed_forward_sites(
    graph: fx.Graph, block: nn.Module, path: str, stack: str, index: int, family: ModelFamily
) -> Iterable[FeedForwardSite]:
    groups = channel_groups(graph, block)
    homes = [common_module([*group.producers, *group.consumers]) for group in groups]
    taken = Counter(homes)
    for group, home in zip(groups, homes, strict=True):
        # Two groups in one module (or straight in the block) are told apart by their last linear.
        name = home if home and taken[home] == 1 else group.consumers[0]
        if group.beside_others:
            name = group.producers[0]
        (start,) = group.starts
        site = f"{path}.{name}"
        yield FeedForwardSite(
            site, path, stack, index, family.component_of(site), group.width,
            tuple(f"{path}.{p}" for p in group.producers), f"{path}.{group.consumers[0]}",
            group.activation, len(group.producers) > 1, start, group.beside_others,
        )  # fmt: skip


def _expert_sites(
    graph: fx.Graph, block: nn.Module, path: str, stack: str, index: int, family: ModelFamily
) -> Iterable[ExpertSite]:
    names = dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "call_module")
    for name in names:
        leaf, site = block.get_submodule(name), f"{path}.{name}"
        if not isinstance(leaf, RoutedFeedForward):
            continue
        shape = leaf.shape
        yield ExpertSite(
            site, path, stack, index, family.component_of(site),
            shape.experts, shape.active, shape.width, shape.shared_width, shape.hidden,
            tuple(f"{site}.experts.{producer}" for producer in shape.producers),
            f"{site}.experts.{shape.consumer}", shape.weighting, shape.selector,
        )  # fmt: skip
