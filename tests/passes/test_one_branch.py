"""Blocks of which only one branch is found: a cut of it takes that branch, and not the block."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as hf
from hf_checks import chunks_differ
from hf_models import randomise
from hf_subject import FAMILY, differ, run, void
from torch import Tensor, nn

from umcompress.calibrate.collect import collect
from umcompress.documents.plan import DropBlock, DropBranch, Plan
from umcompress.errors import PlanError
from umcompress.extend import BranchSimilarity, Scope, Statistics
from umcompress.graph.model_graph import ModelGraph, trace_model
from umcompress.passes.layer_drop import LayerDrop
from umcompress.rewrite.apply import rewrite

SIZES: dict[str, Any] = {"vocab_size": 96, "hidden_size": 48, "bos_token_id": 1, "eos_token_id": 2}


def bloom() -> Any:
    return hf.BloomForCausalLM(hf.BloomConfig(**SIZES, n_layer=4, n_head=6))


def rwkv() -> Any:
    sizes = {"num_hidden_layers": 4, "attention_hidden_size": 48, "intermediate_size": 64, "context_length": 64}
    return hf.RwkvForCausalLM(hf.RwkvConfig(**SIZES | sizes))


# name -> (how to build it, what of it is not found)
KINDS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "bloom": (bloom, ("attention",)),
    # Its feed-forward reads the state that its attention gives back, and the model scales the weights of all of them.
    "rwkv": (rwkv, ("attention", "feed_forward")),
}


def built(name: str) -> Any:
    torch.manual_seed(0)
    model = KINDS[name][0]().eval()
    randomise(model)
    return FAMILY.adopt(model)


def graph_of(model: Any) -> ModelGraph:
    return trace_model(model, FAMILY)


def test_a_cut_of_one_branch_takes_that_branch() -> None:
    """As if its last linear gave zeros."""
    model = built("bloom")
    graph = graph_of(model)
    plan = LayerDrop(unit="feed_forward", drop=(1, 3)).plan(graph, Statistics()).plan
    blocks = [block.path for block in graph.blocks()]
    assert plan.edits == tuple(
        DropBranch(block=blocks[i], branch="feed_forward", component="shared") for i in (1, 3)
    )
    twin = copy.deepcopy(model)
    for index in (1, 3):
        for parameter in twin.transformer.h[index].mlp.dense_4h_to_h.parameters():
            parameter.data.zero_()
    edited = rewrite(copy.deepcopy(model), FAMILY, [plan])
    assert len(graph_of(edited).blocks()) == 4
    assert not [name for name, _ in edited.named_parameters() if name.startswith("transformer.h.1.mlp.")]
    assert differ(run(edited), run(twin)) < 1e-6
    assert differ(run(edited), run(model)) > 1e-3
    assert chunks_differ(edited) < 1e-5


@pytest.mark.parametrize("name", KINDS)
def test_what_was_not_found_is_refused_and_a_block_goes_whole(name: str) -> None:
    model, (_, missing) = built(name), KINDS[name]
    graph = graph_of(model)
    for unit in missing:
        with pytest.raises(PlanError, match=r"as a whole|goes with its block only"):
            LayerDrop.model_validate({"unit": unit, "drop_count": 1, "score": "last"}).plan(graph, Statistics())
    plan: Plan = LayerDrop(unit="block", drop=(2,)).plan(graph, Statistics()).plan
    assert plan.edits == (DropBlock(block=graph.blocks()[2].path),)


def test_a_branch_of_bloom_is_scored_by_what_it_adds() -> None:
    """Against its module's own residual and output."""
    model: Any = built("bloom")
    need = BranchSimilarity("feed_forward", Scope("shared"))
    measured = collect(graph_of(model), [need], lambda: void(run(model)))[need]
    seen: list[tuple[Tensor, Tensor]] = []

    def note(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((args[1].clone(), output))

    hook = model.transformer.h[2].mlp.register_forward_hook(note)
    run(model)
    hook.remove()
    cosines = [torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1).flatten() for a, b in seen]
    right = float(torch.cat(cosines).mean())
    site = graph_of(model).branches("feed_forward")[2]
    assert measured[site].cosine == pytest.approx(right, abs=1e-9)
