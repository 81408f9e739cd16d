"""Draw plans that fit a pico model, for property tests."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from umcompress.edits import DropBlock, DropBranch, Edit, KeepChannels, KeepHeads, Plan, SetTensors
from umcompress.graph.model_graph import ModelFamily, ModelGraph, trace_model

Draw = st.DataObject


def some(data: Draw, size: int) -> tuple[int, ...]:
    """A non-empty ascending selection of range(size)."""
    picked = data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=size))
    return tuple(sorted(picked))


def draw_plan(data: Draw, model: nn.Module, family: ModelFamily, name: str = "drawn") -> Plan:
    """Structural edits on the model as it is; the first block of each stack is never dropped or emptied."""
    graph = trace_model(model, family)
    edits: list[Edit] = []
    for block in graph.blocks(stack="all"):
        if block.index > 0 and data.draw(st.integers(0, 4)) == 0:
            edits.append(DropBlock(block=block.path))
            continue
        edits += _inside(data, graph, block.path, block.index == 0)
    return Plan(pass_name=name, edits=tuple(data.draw(st.permutations(edits))))


def _inside(data: Draw, graph: ModelGraph, path: str, first: bool) -> list[Edit]:
    edits: list[Edit] = []
    found = graph.block(path)
    last = len(found.site.branches) - 1
    for number, branch in enumerate(found.site.branches):
        choice = data.draw(st.sampled_from(["drop", "keep", "cut"]))
        if choice == "drop" and not (first and number == last):
            edits.append(DropBranch(block=path, branch=branch.kind, component=branch.component))  # type: ignore[arg-type]
        elif choice == "cut" and branch.kind == "attention":
            site = next(s for s in found.attentions if s.component == branch.component)
            groups, per = site.key_value_groups, site.query_heads_per_group
            if data.draw(st.booleans()):
                cut = {"key_value_groups": some(data, groups)}
            else:
                count = data.draw(st.integers(1, per))
                order = st.permutations(range(per))
                picks = [sorted(data.draw(order)[:count]) for _ in range(groups)]
                cut = {"query_heads": tuple(g * per + j for g in range(groups) for j in picks[g])}
            edits.append(KeepHeads(site=site.path, component=site.component, **cut))  # type: ignore[arg-type]
        elif choice == "cut":
            ff = next(s for s in found.feed_forwards if s.component == branch.component)
            edits.append(KeepChannels(site=ff.path, keep=some(data, ff.width), bias=data.draw(st.booleans())))
    return edits


def with_values(
    data: Draw, plan: Plan, model: nn.Module, family: ModelFamily
) -> tuple[Plan, dict[str, Tensor]]:
    """The plan with new values for one tensor of each feed-forward that it cuts, in its shape to be."""
    blobs: dict[str, Tensor] = {}
    graph = trace_model(model, family)
    sites = {s.path: s for s in graph.feed_forwards(stack="all")}
    for edit in plan.edits:
        if isinstance(edit, KeepChannels):
            name = f"{sites[edit.site].consumer}.weight"
            rows = graph.weight(name).shape[0]
            seed = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
            blobs[name] = torch.randn(rows, len(edit.keep), generator=seed)
    if not blobs:
        return plan, {}
    edits = (*plan.edits, SetTensors(names=tuple(sorted(blobs))))
    return plan.model_copy(update={"edits": edits}), blobs
