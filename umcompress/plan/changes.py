"""What a plan changes, site by site and tensor by tensor, on shapes alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from umcompress.documents.base import Component
from umcompress.documents.plan import DropBlock, DropBranch, DropModule, KeepChannels, KeepHeads, Plan, SplitExperts
from umcompress.documents.previews import SiteChange, TensorChange
from umcompress.documents.removed import experts_in_words
from umcompress.graph.model_graph import ModelGraph
from umcompress.graph.sites import AttentionSite, FeedForwardSite
from umcompress.rewrite.tensors import Expression, StackGroups, StoredValue, TensorMap, source_of

if TYPE_CHECKING:
    from torch import nn

Shapes = dict[str, tuple[int, ...]]


def site_changes(plan: Plan, graph: ModelGraph, measured: bool) -> Iterator[SiteChange]:
    """One row for each edit and component; an edit finds its site as earlier edits left it."""
    example = "for example: measuring decides which" if measured else ""
    blocks = {site.path: site for site in graph.blocks(stack="all")}
    heads = {(site.path, site.component): site for site in graph.attentions(stack="all")}
    widths = {site.path: site for site in graph.feed_forwards(stack="all")}
    now: dict[tuple[str, str, str], int] = {}

    def change(site: str, component: str, unit: str, before: int, after: int, note: str = "") -> SiteChange:
        key = (site, component, unit)
        before, now[key] = now.get(key, before), after
        part = cast(Component, component)
        return SiteChange(site=site, component=part, unit=unit, before=before, after=after, note=note)

    for edit in plan.edits:
        if isinstance(edit, DropBlock):
            for component in sorted(blocks[edit.block].components):
                yield change(edit.block, component, "block", 1, 0, example)
        elif isinstance(edit, DropBranch):
            at = f"{edit.block}.{edit.part}" if edit.part else edit.block
            yield change(at, edit.component, edit.branch, 1, 0, example)
        elif isinstance(edit, DropModule):
            yield change(edit.module, graph.family.component_of(edit.module), "module", 1, 0, "never read")
        elif isinstance(edit, KeepHeads):
            site = heads[edit.site, edit.component]
            if (groups := edit.key_value_groups) is not None:
                each = f"{site.query_heads_per_group} query heads each"
                yield change(*_at(site), "key-value groups", site.key_value_groups, len(groups), each)
            else:
                yield change(*_at(site), "query heads", site.query_heads, len(edit.query_heads or ()))
        elif isinstance(edit, KeepChannels):
            place = widths[edit.site]
            note = "its consumer has a bias" if edit.bias else ""
            yield change(*_at(place), "channels", place.width, len(edit.keep), note)
        elif isinstance(edit, SplitExperts):
            place, shared = widths[edit.site], len(edit.shared)
            before = now.get((*_at(place), "channels"), place.width)
            note = experts_in_words(len(edit.experts), edit.width, edit.active, shared)
            yield change(*_at(place), "channels at work", before, edit.active * edit.width + shared, note)


def _at(site: AttentionSite | FeedForwardSite) -> tuple[str, str]:
    return site.path, site.component


def shapes_of(model: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}


def tensor_changes(before: Shapes, tensors: TensorMap, after: Shapes) -> Iterator[TensorChange]:
    """Tensors that are new, gone or of another shape, by their names before the step.

    A block that only moves up in its stack is no change.
    """
    readers = Counter(source_of(expression) for expression in tensors.entries.values())
    origin = {name: _origin(name, expression, readers) for name, expression in tensors.entries.items()}
    here = {old: name for name, old in origin.items()}
    for old in (*before, *(name for name in here if name not in before)):
        was, now = before.get(old), after[here[old]] if old in here else None
        if was != now:
            yield TensorChange(name=old, before=was, after=now)


def _origin(name: str, expression: Expression, readers: Counter[str | None]) -> str:
    """What a tensor was called before; a new one, also one of several made of the same, goes by its own name."""
    if isinstance(expression, StoredValue):
        return expression.name
    source = source_of(expression)
    return name if source is None or readers[source] > 1 or isinstance(expression, StackGroups) else source
