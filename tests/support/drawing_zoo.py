"""Draw plans of every edit that fit any model of a family, for property tests.

Hypothesis chooses what is done to each branch; which heads, channels and values that takes follows from a seed.
"""

from __future__ import annotations

import random

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
from umcompress.graph.linears import is_conv1d
from umcompress.graph.model_graph import ModelFamily, ModelGraph, trace_model
from umcompress.graph.sites import AttentionSite, FeedForwardSite

Draw = st.DataObject
# The simplest example, which is always tried, does the most.
_DONE = ["cut and split", "cut", "split", "keep", "drop"]


def draw_any_plan(data: Draw, model: nn.Module, family: ModelFamily, name: str) -> tuple[Plan, dict[str, Tensor]]:
    """New values for some tensors, then structural edits on the model as it is. The first block of a stack stays."""
    graph, dice = trace_model(model, family), random.Random(data.draw(st.integers(0, 999)))
    edits, values = list[Edit](), some_values(dice, model)
    for block in graph.blocks(stack="all"):
        if block.index > 0 and data.draw(st.integers(0, 4)) == 4:
            edits.append(DropBlock(block=block.path))
            continue
        found = graph.block(block.path)
        for number, branch in enumerate(block.branches):
            done = data.draw(st.sampled_from(_DONE))
            if done == "drop" and (block.index > 0 or number):
                kind, component = branch.kind, branch.component
                edits.append(DropBranch(block=block.path, branch=kind, component=component))  # type: ignore[arg-type]
            elif "cut" in done and branch.kind == "attention":
                edits += [_heads(dice, site) for site in found.attentions if site.component == branch.component]
            elif branch.kind == "feed_forward" and done not in ("keep", "drop"):
                for feed_forward in found.feed_forwards:
                    if feed_forward.component == branch.component:
                        edits += _channels(dice, graph, feed_forward, done)
    if values:
        edits.insert(0, SetTensors(names=tuple(sorted(values))))
    return Plan(pass_name=name, edits=tuple(edits)), values


def some_values(dice: random.Random, model: nn.Module) -> dict[str, Tensor]:
    """For a few parameters, whatever they belong to."""
    names = [name for name, parameter in model.named_parameters() if parameter.is_floating_point()]
    seed = torch.Generator().manual_seed(dice.randrange(1000))
    found = {}
    for name in dice.sample(names, min(3, len(names))):
        parameter, owner = model.get_parameter(name), model.get_submodule(name.rpartition(".")[0])
        # Plans speak of every weight as (out, in).
        shape = parameter.shape[::-1] if is_conv1d(owner) else parameter.shape
        found[name] = torch.randn(shape, generator=seed).to(parameter.dtype)
    return found


def _heads(dice: random.Random, site: AttentionSite) -> KeepHeads:
    groups, per = site.key_value_groups, site.query_heads_per_group
    if per == 1 or dice.random() < 0.5:
        cut = {"key_value_groups": _some(dice, groups)}
    else:
        count = dice.randint(1, per)
        picks = [sorted(dice.sample(range(per), count)) for _ in range(groups)]
        cut = {"query_heads": tuple(group * per + j for group in range(groups) for j in picks[group])}
    return KeepHeads(site=site.path, component=site.component, **cut)  # type: ignore[arg-type]


def _channels(dice: random.Random, graph: ModelGraph, site: FeedForwardSite, done: str) -> list[Edit]:
    edits, width = list[Edit](), site.width
    if "cut" in done:
        keep = _some(dice, width)
        edits.append(KeepChannels(site=site.path, keep=keep, bias=dice.random() < 0.5))
        width = len(keep)
    if "split" in done and not isinstance(graph.split_place(site), str):
        shared = dice.randrange(width)
        experts = dice.choice([n for n in range(1, width - shared + 1) if (width - shared) % n == 0])
        order, size = dice.sample(range(width), width), (width - shared) // experts
        edits.append(SplitExperts(
            site=site.path, experts=tuple(tuple(order[e * size : (e + 1) * size]) for e in range(experts)),
            shared=tuple(order[experts * size :]), active=dice.randint(1, experts), selector=dice.random() < 0.5,
            weighting=dice.choice(["one_plus_logit", "softmax"]),
        ))  # fmt: skip
    return edits


def _some(dice: random.Random, size: int) -> tuple[int, ...]:
    return tuple(sorted(dice.sample(range(size), dice.randint(1, size))))
