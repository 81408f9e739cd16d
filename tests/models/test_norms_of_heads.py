"""Attentions of which each head has a norm of its own (StableLM): the heads that stay keep theirs.

The reference knows no norm: columns of the output projection are zero.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from hf_checks import chunks_differ, same
from hf_models import randomise
from hf_subject import FAMILY, differ, run
from torch import nn

from umcompress.documents.plan import CompressionRecord, KeepHeads, Plan
from umcompress.graph.model_graph import trace_model
from umcompress.models.hf.anatomy.attention import layout_of
from umcompress.models.save import save_compressed
from umcompress.models.source import open_source
from umcompress.rewrite.apply import rewrite
from umcompress.run.out_of_core import open_on_disk

HEAD = 8
CUTS: list[dict[str, tuple[int, ...]]] = [{"key_value_groups": (1, 2)}, {"query_heads": (1, 2, 5)}]


def stablelm() -> Any:
    torch.manual_seed(0)
    config = hf.StableLmConfig(
        vocab_size=96, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=3, qk_layernorm=True, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = hf.StableLmForCausalLM(config).eval()
    randomise(model)
    return model


def silent(model: Any, gone: set[int]) -> Any:
    """The model with the columns of these query heads made zero."""
    twin = copy.deepcopy(model)
    for layer in twin.model.layers:
        for head in gone:
            layer.self_attn.o_proj.weight.data[:, head * HEAD : (head + 1) * HEAD] = 0
    return twin


@pytest.mark.parametrize("cut", CUTS, ids=["groups", "query heads"])
def test_heads_that_stay_keep_their_norms(cut: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    """In memory, out of core and loaded again the same bits; an ordinary model says the same."""
    folder = tmp_path / "whole"
    stablelm().save_pretrained(folder)
    source = open_source(str(folder))
    model: Any = source.load()
    sites = trace_model(model, source.family).attentions()
    plan = Plan(
        pass_name="test",
        edits=tuple(KeepHeads(site=site.path, component="shared", **cut) for site in sites),  # type: ignore[arg-type]
    )
    edited = rewrite(copy.deepcopy(model), source.family, [plan])
    stay = set(cut.get("query_heads", (2, 3, 4, 5)))
    assert differ(run(edited), run(silent(model, set(range(6)) - stay))) < 1e-5
    assert chunks_differ(edited) < 1e-5
    record = CompressionRecord(base=str(folder), family="transformers", plans=(plan,))
    out = tmp_path / "cut"
    save_compressed(edited, source.family, out, record, folder)
    same(run(open_source(str(out)).load()), run(edited))
    disk = open_on_disk(source)
    disk.apply(plan, {})
    disk.write(tmp_path / "disk", record)
    assert (tmp_path / "disk/model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_a_list_of_norms_that_are_not_one_for_each_head_is_declined() -> None:
    model: Any = FAMILY.adopt(stablelm())
    attention = model.model.layers[0].self_attn
    attention.q_layernorm.norms.append(nn.LayerNorm(HEAD))
    assert layout_of(attention) == "the norms in q_layernorm are not one for each head"
