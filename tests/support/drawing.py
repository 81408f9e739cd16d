"""Draw plans that fit a pico model, for property tests."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from umcompress.documents.plan import (
    DropBlock,
    DropBranch,
    Edit,
    KeepChannels,
    KeepHeads,
    Plan,
    SetTensors,
    SplitExperts,
)
from umcompress.graph.block_graph import BlockGraph
from umcompress.graph.model_graph import ModelFamily, ModelGraph, trace_model
from umcompress.graph.sites import BranchSite, FeedForwardSite

Draw = st.DataObject


def some(data: Draw, size: int) -> tuple[int, ...]:
    """A non-empty ascending selection of range(size)."""
    picked = data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=size))
    return tuple(sorted(picked))


def draw_plan(
    data: Draw, model: nn.Module, family: ModelFamily, name: str = "drawn", dense: bool = False
) -> Plan:
    """Structural edits on the model as it is; the first block of each stack is never dropped or emptied.

    `dense`: experts are all active, so that they compute what the feed-forward did.
    """
    graph = trace_model(model, family)
    edits: list[list[Edit]] = []
    for block in graph.blocks(stack="all"):
        if block.index > 0 and data.draw(st.integers(0, 4)) == 0:
            edits.append([DropBlock(block=block.path)])
            continue
        edits += _inside(data, graph, block.path, block.index == 0, dense)
    return Plan(pass_name=name, edits=tuple(e for one in data.draw(st.permutations(edits)) for e in one))


def _inside(data: Draw, graph: ModelGraph, path: str, first: bool, dense: bool) -> list[list[Edit]]:
    """Edits of a block; those of one site stay in their order."""
    edits: list[list[Edit]] = []
    found = graph.block(path)
    last = len(found.site.branches) - 1
    for number, branch in enumerate(found.site.branches):
        choice = data.draw(st.sampled_from(["drop", "keep", "cut", "split", "cut and split"]))
        if choice == "drop" and not (first and number == last):
            drop = DropBranch(block=path, branch=branch.kind, component=branch.component)  # type: ignore[arg-type]
            edits.append([drop])
        elif "cut" in choice and branch.kind == "attention":
            edits.append([_heads(data, found, branch)])
        elif choice in ("cut", "split", "cut and split"):
            # None where an earlier plan split it.
            site = next((s for s in found.feed_forwards if s.component == branch.component), None)
            if site is not None and branch.kind == "feed_forward":
                edits.append(_channels(data, site, choice, dense))
    return edits


def _heads(data: Draw, found: BlockGraph, branch: BranchSite) -> KeepHeads:
    site = next(s for s in found.attentions if s.component == branch.component)
    groups, per = site.key_value_groups, site.query_heads_per_group
    if data.draw(st.booleans()):
        cut = {"key_value_groups": some(data, groups)}
    else:
        count = data.draw(st.integers(1, per))
        order = st.permutations(range(per))
        picks = [sorted(data.draw(order)[:count]) for _ in range(groups)]
        cut = {"query_heads": tuple(g * per + j for g in range(groups) for j in picks[g])}
    return KeepHeads(site=site.path, component=site.component, **cut)  # type: ignore[arg-type]


def _channels(data: Draw, site: FeedForwardSite, choice: str, dense: bool) -> list[Edit]:
    edits: list[Edit] = []
    width = site.width
    if "cut" in choice:
        keep = some(data, width)
        edits.append(KeepChannels(site=site.path, keep=keep, bias=data.draw(st.booleans())))
        width = len(keep)
    if "split" in choice:
        edits.append(_experts(data, site.path, width, dense))
    return edits


def _experts(data: Draw, site: str, width: int, dense: bool) -> SplitExperts:
    shared = data.draw(st.integers(0, width - 1))
    counts = [n for n in range(1, width - shared + 1) if (width - shared) % n == 0]
    experts = data.draw(st.sampled_from(counts))
    order, size = data.draw(st.permutations(range(width))), (width - shared) // experts
    return SplitExperts(
        site=site,
        experts=tuple(tuple(order[e * size : (e + 1) * size]) for e in range(experts)),
        shared=tuple(order[experts * size :]),
        active=experts if dense else data.draw(st.integers(1, experts)),
        weighting=data.draw(st.sampled_from(["one_plus_logit", "softmax"])),
        selector=data.draw(st.booleans()),
    )


def with_values(
    data: Draw, plan: Plan, model: nn.Module, family: ModelFamily
) -> tuple[Plan, dict[str, Tensor]]:
    """The plan with new values for one tensor of each feed-forward that it cuts, and for routers of experts."""
    blobs: dict[str, Tensor] = {}
    sites = {s.path: s for s in trace_model(model, family).feed_forwards(stack="all")}
    split = {edit.site for edit in plan.edits if isinstance(edit, SplitExperts)}
    for edit in plan.edits:
        if not isinstance(edit, KeepChannels | SplitExperts):
            continue
        consumer = sites[edit.site].consumer
        last: Any = model.get_submodule(consumer)
        hidden, dtype = int(last.out_features), last.weight.dtype
        seed = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
        shapes: dict[str, tuple[int, ...]] = {}
        if isinstance(edit, SplitExperts):
            home = f"{consumer}_experts" if edit.site == consumer else edit.site
            name, experts = consumer.rpartition(".")[2], len(edit.experts)
            shapes = {f"{home}.gate.weight": (experts, hidden)}
            shapes[f"{home}.experts.{name}.weight"] = (experts, hidden, edit.width)
            if edit.selector:
                shapes |= {f"{home}.selector.weight": (experts, hidden), f"{home}.selector.bias": (experts,)}
        elif edit.site not in split:
            shapes = {f"{consumer}.weight": (hidden, len(edit.keep))}
        blobs |= {name: torch.randn(shape, generator=seed).to(dtype) for name, shape in shapes.items()}
    if not blobs:
        return plan, {}
    edits = (*plan.edits, SetTensors(names=tuple(sorted(blobs))))
    return plan.model_copy(update={"edits": edits}), blobs
