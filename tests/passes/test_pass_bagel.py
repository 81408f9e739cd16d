"""All passes in turn on the real BAGEL classes at a toy size: plan, apply, trace again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pico import bagel_outputs, pico_bagel
from torch import nn

from umcompress.calibrate.collect import collect
from umcompress.documents.plan import Plan
from umcompress.extend.pass_base import Pass
from umcompress.extend.registry import find_pass
from umcompress.graph.model_graph import trace_model
from umcompress.models.bagel.family import BagelFamily
from umcompress.rewrite.apply import rewrite

FAMILY = BagelFamily()
CHAIN: list[tuple[str, dict[str, Any]]] = [
    ("layer_drop", {"component": "understanding", "unit": "attention", "keep_ratio": 0.67, "greedy": True}),
    ("head_prune", {"component": "generation", "keep_ratio": 0.5}),
    ("channel_prune", {"component": "understanding", "keep_ratio": 0.5, "repair": "least_squares"}),
    ("channel_prune", {"component": "understanding", "stack": "vision", "keep_ratio": 0.5, "repair": "bias"}),
    ("channel_prune", {"component": "generation", "keep_ratio": 0.75, "allocation": "global"}),
]


def step(model: nn.Module, asked: Pass) -> Plan:
    def feed(model: nn.Module) -> None:
        bagel_outputs(model)

    def rework(edits: Any) -> Any:
        edited = rewrite(copy.deepcopy(model), FAMILY, [Plan(pass_name="copy", edits=tuple(edits))])
        return trace_model(edited, FAMILY), lambda: feed(edited)

    graph = trace_model(model, FAMILY)
    statistics = collect(graph, asked.needs(), lambda: feed(model), rework=rework)
    proposal = asked.plan(graph, statistics)
    rewrite(model, FAMILY, [proposal.plan], [dict(proposal.tensors)])
    return proposal.plan


def test_the_passes_chain() -> None:
    model, sizes = pico_bagel(), []
    for name, options in CHAIN:
        plan = step(model, find_pass(name).model_validate(options))
        assert plan.edits and Plan.model_validate_json(plan.model_dump_json()) == plan
        assert all(output.isfinite().all() for output in bagel_outputs(model))
        sizes.append(sum(p.numel() for p in model.parameters()))
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)


@pytest.mark.parametrize("name", ["head_prune", "channel_prune", "layer_drop"])
def test_keeping_everything_changes_no_bit(name: str) -> None:
    model = pico_bagel()
    before = copy.deepcopy(model.state_dict())
    outputs = bagel_outputs(model)
    step(model, find_pass(name).model_validate({"component": "generation", "keep_ratio": 1.0}))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(map(torch.equal, bagel_outputs(model), outputs))
