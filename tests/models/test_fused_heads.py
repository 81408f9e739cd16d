"""Attentions that one linear feeds: heads or groups follow each other, each with its queries, keys and values.

The reference knows no layout of it: columns of the output projection are zero. Biases of heads (ALiBi) stay theirs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from hf_checks import chunks_differ, padded_differ, same
from hf_models import randomise
from hf_subject import FAMILY, differ, run

from umcompress.documents.plan import CompressionRecord, KeepHeads, Plan
from umcompress.errors import PlanError
from umcompress.extend import Statistics
from umcompress.graph.model_graph import ModelGraph, trace_model
from umcompress.models.save import save_compressed
from umcompress.models.source import open_source
from umcompress.passes.head_prune import HeadPrune
from umcompress.rewrite.apply import rewrite
from umcompress.run.out_of_core import open_on_disk

FILE = "model.safetensors"
WORDS: dict[str, Any] = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES: dict[str, Any] = WORDS | {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6}


def falcon(**changes: Any) -> hf.PreTrainedModel:
    return hf.FalconForCausalLM(hf.FalconConfig(**SIZES | {"ffn_hidden_size": 64} | changes))


def bigcode(**changes: Any) -> hf.PreTrainedModel:
    sizes = {"n_embd": 48, "n_layer": 2, "n_head": 6, "n_inner": 64, "n_positions": 64}
    return hf.GPTBigCodeForCausalLM(hf.GPTBigCodeConfig(**WORDS | sizes | changes))


def bloom() -> hf.PreTrainedModel:
    return hf.BloomForCausalLM(hf.BloomConfig(**WORDS, hidden_size=48, n_layer=2, n_head=6))


def mpt() -> hf.PreTrainedModel:
    sizes = {"d_model": 48, "n_layers": 2, "n_heads": 6, "expansion_ratio": 2, "max_seq_len": 64}
    return hf.MptForCausalLM(hf.MptConfig(**WORDS | sizes))


def codegen() -> hf.PreTrainedModel:
    sizes = {"n_embd": 48, "n_layer": 2, "n_head": 12, "n_inner": 64, "n_positions": 64, "rotary_dim": 4}
    return hf.CodeGenForCausalLM(hf.CodeGenConfig(**WORDS | sizes))


def neox() -> hf.PreTrainedModel:
    return hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SIZES, intermediate_size=64, max_position_embeddings=64))


def persimmon() -> hf.PreTrainedModel:
    return hf.PersimmonForCausalLM(hf.PersimmonConfig(**SIZES, intermediate_size=64, max_position_embeddings=64))


def dbrx() -> hf.PreTrainedModel:
    heads = {"kv_n_heads": 3, "clip_qkv": 8, "rope_theta": 10000.0}
    experts = {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2, "ffn_act_fn": {"name": "silu"}}
    sizes = {"d_model": 48, "n_heads": 6, "n_layers": 2, "max_seq_len": 64}
    return hf.DbrxForCausalLM(hf.DbrxConfig(**WORDS | sizes, attn_config=heads, ffn_config=experts))


# name -> (how to build it, its groups, query heads in each)
KINDS: dict[str, tuple[Callable[[], hf.PreTrainedModel], int, int]] = {
    "gpt_neox": (neox, 6, 1),
    "bloom": (bloom, 6, 1),
    "falcon, one key for all heads": (falcon, 1, 6),
    "falcon, a key for each head": (lambda: falcon(multi_query=False, bias=True, parallel_attn=False), 6, 1),
    "falcon, a key for each head, slopes": (lambda: falcon(multi_query=False, alibi=True), 6, 1),
    "falcon, groups": (lambda: falcon(new_decoder_architecture=True, num_kv_heads=3), 3, 2),
    "falcon, one key for all heads, slopes": (lambda: falcon(alibi=True), 1, 6),
    "mpt": (mpt, 6, 1),
    "persimmon": (persimmon, 6, 1),
    "gpt_bigcode, one key for all heads": (bigcode, 1, 6),
    "gpt_bigcode, a key for each head": (lambda: bigcode(multi_query=False), 6, 1),
    "codegen": (codegen, 12, 1),
    "dbrx": (dbrx, 3, 2),
}


@cache
def model_of(name: str) -> Any:
    """In float32: some of these compute scores in it."""
    torch.manual_seed(0)
    model = KINDS[name][0]().eval()
    randomise(model)
    return model


def graph_of(model: Any) -> ModelGraph:
    return trace_model(FAMILY.adopt(model), FAMILY)


def cuts(name: str) -> list[dict[str, tuple[int, ...]]]:
    """What stays: of the groups, or of the query heads of each; twice where both are possible."""
    _, groups, per = KINDS[name]
    of_groups = {3: (1, 2), 6: (1, 2, 4, 5), 12: (0, 1, 3, 5, 6, 7, 8, 11)}
    of_heads = {1: (1, 2, 5), 3: (0, 3, 5)}
    found = [{"key_value_groups": of_groups[groups]}] if groups > 1 else []
    return found + ([{"query_heads": of_heads[groups]}] if per > 1 else [])


def plan_of(graph: ModelGraph, cut: dict[str, tuple[int, ...]]) -> Plan:
    """The first attention as asked, the second the other way round."""
    edits = []
    for number, site in enumerate(graph.attentions()):
        sizes = {"key_value_groups": site.key_value_groups, "query_heads": site.query_heads}
        own = {kind: _turned(kept, sizes[kind]) if number else kept for kind, kept in cut.items()}
        edits.append(KeepHeads(site=site.path, component="shared", **own))  # type: ignore[arg-type]
    return Plan(pass_name="test", edits=tuple(edits))


def _turned(kept: tuple[int, ...], size: int) -> tuple[int, ...]:
    return tuple(sorted(size - 1 - position for position in kept))


def silent(model: Any, plan: Plan, head_dim: int, per: int) -> Any:
    """The model with the columns of the heads that go made zero."""
    twin = copy.deepcopy(model)
    for edit in plan.edits:
        assert isinstance(edit, KeepHeads)
        names = dict(twin.get_submodule(edit.site).named_children())
        last: Any = next(names[name] for name in ("dense", "out_proj", "c_proj") if name in names)
        kept = edit.query_heads
        if edit.key_value_groups is not None:
            kept = tuple(group * per + j for group in edit.key_value_groups for j in range(per))
        for head in set(range(last.in_features // head_dim)) - set(kept or ()):
            last.weight.data[:, head * head_dim : (head + 1) * head_dim] = 0
    return twin


@pytest.mark.parametrize("name", KINDS)
def test_heads_are_cut_as_zeros_would(name: str, tmp_path: Path) -> None:
    """Read at once, in chunks with a cache, padded on the left; loaded again, where transformers alone refuses it."""
    _, groups, per = KINDS[name]
    folder = tmp_path / "whole"
    model_of(name).save_pretrained(folder)
    source = open_source(str(folder))
    model: Any = source.load()
    graph = trace_model(model, source.family)
    sites = graph.attentions()
    assert [(site.key_value_groups, site.query_heads_per_group) for site in sites] == [(groups, per)] * 2
    assert not [gap for gap in graph.gaps() if gap.kind == "attention"]
    whole = run(model)
    for number, cut in enumerate(cuts(name)):
        plan = plan_of(graph, cut)
        edited: Any = rewrite(copy.deepcopy(model), source.family, [plan])
        ours = run(edited)
        assert differ(ours, run(silent(model, plan, sites[0].head_dim, per))) < 1e-5
        assert differ(ours, whole) > 1e-3
        assert chunks_differ(edited) < 1e-5 and padded_differ(edited) < 1e-5
        assert isinstance(source.family.plain(edited, folder, [plan]), str)
        out = tmp_path / f"cut{number}"
        record = CompressionRecord(base=str(folder), family="transformers", plans=(plan,))
        save_compressed(edited, source.family, out, record, folder)
        with pytest.raises((RuntimeError, ValueError, AttributeError)):
            type(edited).from_pretrained(out)
        same(run(open_source(str(out)).load()), ours)
        disk = open_on_disk(source)
        disk.apply(plan, {})
        disk.write(tmp_path / f"disk{number}", record)
        assert (tmp_path / f"disk{number}" / FILE).read_bytes() == (out / FILE).read_bytes()


@pytest.mark.parametrize("name", ["bloom", "mpt", "falcon, a key for each head, slopes", "codegen", "falcon, groups"])
def test_two_cuts_are_the_second_of_the_first(name: str) -> None:
    """Slopes and bundles as the first cut leaves them."""
    model = FAMILY.adopt(copy.deepcopy(model_of(name)))
    chosen: tuple[tuple[int, ...], ...] = ((0, 1, 3, 4, 5), (0, 2, 3), (0, 3, 4))
    if name == "codegen":
        chosen = ((0, 1, 3, 5, 6, 8, 9, 11), (1, 2, 5, 7), (1, 3, 8, 11))
    elif name == "falcon, groups":
        chosen = ((0, 2), (1,), (2,))
    first, then, both = chosen

    def kept(model: Any, groups: tuple[int, ...]) -> Any:
        edits = [
            KeepHeads(site=site.path, component="shared", key_value_groups=groups)
            for site in graph_of(model).attentions()
        ]
        return rewrite(model, FAMILY, [Plan(pass_name="test", edits=tuple(edits))])

    twice = kept(kept(copy.deepcopy(model), first), then)
    once = kept(copy.deepcopy(model), both)
    same(run(twice), run(once))
    assert differ(run(once), run(kept(copy.deepcopy(model), (0, 1, 2, 3)[: len(both)]))) > 1e-3


def test_slopes_are_those_of_the_heads_that_stay() -> None:
    """Four of six heads have other slopes than a model with four: a cut that did not know would be off."""
    model = FAMILY.adopt(copy.deepcopy(model_of("bloom")))
    plan = plan_of(graph_of(model), {"key_value_groups": (1, 2, 4, 5)})
    edited: Any = rewrite(copy.deepcopy(model), FAMILY, [plan])
    right = run(edited)
    for block in edited.transformer.h:
        made, heads = block.self_attention.umcompress_slopes
        assert made == 6 and len(heads) == 4 == block.self_attention.num_heads
        block.self_attention.umcompress_slopes = (6, (0, 1, 2, 3))
    assert edited.transformer.num_heads == 6
    assert differ(run(edited), right) > 1e-3


def test_weights_alone_say_which_heads_stay() -> None:
    """Of the values of the one linear each head's own rows: made zero, that head goes."""
    # Heads that go, and how many heads' rows lie before the values of each.
    places = {
        "gpt_neox": {2: 8}, "falcon, groups": {1: 7}, "gpt_bigcode, a key for each head": {4: 14}, "dbrx": {1: 10},
        "codegen": {1: 4, 3: 12, 8: 23, 9: 30},
    }  # fmt: skip
    for name, gone in places.items():
        model: Any = FAMILY.adopt(copy.deepcopy(model_of(name)))
        site = graph_of(model).attentions()[0]
        for place in gone.values():
            model.get_submodule(site.value).weight.data[place * site.head_dim : (place + 1) * site.head_dim] = 0
        share = (site.key_value_groups - len(gone)) / site.key_value_groups
        planner = HeadPrune(keep_ratio=share, score="magnitude", layers="0")
        plan = planner.plan(graph_of(model), Statistics(task="understanding")).plan
        (edit,) = plan.edits
        assert isinstance(edit, KeepHeads)
        assert set(range(site.key_value_groups)) - set(edit.key_value_groups or ()) == set(gone)


@pytest.mark.parametrize("name", ["falcon, a key for each head, slopes", "falcon, one key for all heads, slopes"])
def test_falcon_takes_its_slopes_from_either_argument(name: str) -> None:
    """Its mask has them where torch's own attention runs; step by step it adds what comes beside it, too."""
    model: Any = FAMILY.adopt(copy.deepcopy(model_of(name)))
    model.config._attn_implementation = "eager"
    plan = plan_of(graph_of(model), cuts(name)[0])
    edited = rewrite(copy.deepcopy(model), FAMILY, [plan])
    assert differ(run(edited), run(silent(model, plan, 8, KINDS[name][2]))) < 1e-5


def test_heads_of_codegen_stay_in_fours() -> None:
    """It reads its linear in four parts of equal size."""
    graph = graph_of(copy.deepcopy(model_of("codegen")))
    plan = HeadPrune(keep_ratio=0.75, score="magnitude").plan(graph, Statistics(task="understanding")).plan
    assert {len(edit.key_value_groups or ()) for edit in plan.edits if isinstance(edit, KeepHeads)} == {8}
    with pytest.raises(PlanError, match="4 to 8 in steps of 4"):
        HeadPrune(keep_ratio=0.9, score="magnitude").plan(graph, Statistics(task="understanding"))
    odd = plan_of(graph, {"key_value_groups": (0, 1, 2)})
    with pytest.raises(PlanError, match="4 parts of equal size"):
        rewrite(graph.model, FAMILY, [odd])
