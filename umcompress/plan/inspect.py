"""`umcompress inspect`: components, stacks and sites of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

from umcompress.documents.base import Component, Task
from umcompress.documents.previews import Inspection, Missing, SiteInfo
from umcompress.documents.removed import experts_in_words
from umcompress.graph.model_graph import ModelGraph, trace_model
from umcompress.graph.printer import print_graph
from umcompress.graph.sites import AttentionSite, BlockSite, ExpertSite, FeedForwardSite
from umcompress.models.measure import weigh
from umcompress.models.source import open_source
from umcompress.plan.walk import checked_skeleton


def inspect_model(model: str, graph_path: str | None, trust_remote_code: bool = False) -> Inspection:
    """Components, stacks, sites and sizes of a model; with `graph_path` also the code of that block.

    Raises UsageError, with the nearest path, where there is no such block.
    """
    source = open_source(model, trust_remote_code=trust_remote_code)
    skeleton = checked_skeleton(source)
    graph = trace_model(skeleton, source.family)
    text = None if graph_path is None else print_graph(graph.block_graph(graph_path))
    weight = weigh(skeleton, source.family, source.runner(skeleton))
    return Inspection(
        model=model, family=source.family.name,
        stacks={name: len(graph.blocks(stack=name)) for name in graph.stacks},
        parameters=weight.parameters, bytes=weight.bytes, macs_per_token=weight.macs_per_token,
        sites=tuple(_marked(site, source.family.not_read(skeleton)) for site in _sites(graph)), graph=text,
        missing=tuple(Missing(path=gap.path, kind=gap.kind, reason=gap.reason) for gap in graph.gaps()),
    )  # fmt: skip


def _marked(site: SiteInfo, not_read: Mapping[str, Task]) -> SiteInfo:
    """The site, with the task in which nothing depends on it."""
    task = not_read.get(site.path)
    return site if task is None else site.model_copy(update={"shape": f"{site.shape}, not read in {task}"})


def _sites(graph: ModelGraph) -> Iterator[SiteInfo]:
    """Block by block: what it has of each component, its attentions, its feed-forwards."""
    attentions: dict[str, list[AttentionSite]] = {}
    feed_forwards: dict[str, list[FeedForwardSite]] = {}
    for site in graph.attentions(stack="all"):
        attentions.setdefault(site.block, []).append(site)
    for place in graph.feed_forwards(stack="all"):
        feed_forwards.setdefault(place.block, []).append(place)
    for block in graph.blocks(stack="all"):
        for component in sorted(block.components):
            kinds = [branch.kind for branch in block.branches if branch.component == component]
            yield _info(block, "block", component, " + ".join(kinds))
        for site in attentions.get(block.path, ()):
            heads = f"{site.query_heads} heads of {site.head_dim}, {site.key_value_groups} groups"
            yield _info(site, "attention", site.component, heads)
        for place in feed_forwards.get(block.path, ()):
            kind = f"{'gated ' if place.gated else ''}{place.activation}"
            yield _info(place, "feed_forward", place.component, f"{place.width} channels, {kind}")
        for split in graph.block(block.path).experts:
            parts = experts_in_words(split.experts, split.width, split.active, split.shared_width)
            yield _info(split, "experts", split.component, parts)


def _info(
    site: BlockSite | AttentionSite | FeedForwardSite | ExpertSite, kind: str, component: str, shape: str
) -> SiteInfo:
    part = cast(Component, component)
    return SiteInfo(
        path=site.path, kind=kind, component=part, stack=site.stack, index=site.index, shape=shape
    )
