"""Architectures beyond the support table, by the laws of the sweep over all of them, and what once made them fail.

The laws know no graph: a block that hands its input on, zeros in the weights, transformers' own loading.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from _architecture import apart, built, look, run

from umcompress.calibrate.collect import collect
from umcompress.documents.plan import CompressionRecord, DropBlock, DropBranch, Plan
from umcompress.errors import PlanError
from umcompress.extend import BlockSimilarity, Scope
from umcompress.graph.model_graph import trace_model
from umcompress.models.hf.family import TransformersFamily
from umcompress.models.save import save_compressed
from umcompress.models.source import open_source
from umcompress.passes.layer_drop import LayerDrop
from umcompress.plan.inspect import inspect_model
from umcompress.rewrite.apply import rewrite

# class -> (branches of its kinds of blocks, heads, channels known in so many blocks, cuts that stay plain)
BOTH = ["attention + feed_forward"]
KNOWN: dict[str, tuple[list[str], list[str], int, set[str]]] = {
    "MambaForCausalLM": (["attention"], [], 0, {"blocks"}),
    "BambaForCausalLM": (BOTH, ["4 / 2"], 4, {"blocks", "channels", "heads"}),
    "JambaForCausalLM": (BOTH, ["4 / 2"], 2, {"heads"}),
    "Qwen3NextForCausalLM": (BOTH, ["4 / 2"], 4, {"blocks", "channels", "heads"}),
    "Lfm2MoeForCausalLM": (BOTH, ["4 / 2"], 1, {"blocks", "channels", "heads"}),
    "Gemma4UnifiedForConditionalGeneration": (BOTH, ["4 / 2"], 4, {"blocks", "channels", "heads"}),
    "DiffLlamaForCausalLM": (BOTH, [], 4, {"channels"}),
    "LongcatFlashForCausalLM": ([" + ".join(BOTH * 2 + ["feed_forward"])], [], 4, {"blocks"}),
    "MiniMaxForCausalLM": (BOTH, ["4 / 2"], 0, set()),
    "Phi4MultimodalForCausalLM": (BOTH, ["4 / 2"], 4, {"blocks", "channels", "heads"}),
    "TrOCRForCausalLM": (BOTH, [], 4, {"blocks", "channels"}),
}


@cache
def found(cls: str, home: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    seen: dict[str, Any] = {}
    look(cls, home / cls, seen)
    return seen


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("architectures")


@pytest.mark.parametrize("cls", KNOWN)
def test_cuts_do_what_zeros_would_and_load_again(cls: str, home: Path) -> None:
    branches, heads, channels, plain = KNOWN[cls]
    seen = found(cls, home)
    assert not seen.get("wrong"), seen["wrong"]
    assert (seen["branches"], seen["heads"], seen["feed_forwards"]) == (branches, heads, channels)
    assert {title for title, state in seen["cuts"].items() if state == "plain"} == plain


def test_blocks_of_which_nothing_inside_is_known_are_measured_and_dropped(home: Path) -> None:
    """Gemma 3n's blocks cannot be traced; a fake score says which of them turns the stream least."""
    model = built("Gemma3nForCausalLM", home / "gemma3n")
    source = open_source(str(home / "gemma3n"))
    graph = trace_model(TransformersFamily().adopt(model), source.family)
    assert {gap.kind for gap in graph.gaps()} == {"branches"} and "cannot be traced" in graph.gaps()[0].reason
    seen = inspect_model(str(home / "gemma3n"), None)
    assert len(seen.missing) == len(graph.blocks()) and not seen.sites[0].shape
    streams: dict[str, list[torch.Tensor]] = {}
    for block in graph.blocks():
        model.get_submodule(block.path).register_forward_hook(
            lambda _, args, output, path=block.path: streams.update({path: [args[0], output]})
        )
    declared = BlockSimilarity(Scope())

    def feed() -> None:
        run(source, model)

    measured = collect(graph, [declared], feed)[declared]
    for block in graph.blocks():
        one, other = streams[block.path]
        cosine = torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=-1).mean()
        assert measured[block, "shared"].cosine == pytest.approx(float(cosine), abs=1e-6)


def test_blocks_that_own_columns_of_an_embedding_stay(home: Path) -> None:
    built("Gemma4ForCausalLM", home / "gemma4")
    source = open_source(str(home / "gemma4"))
    model: Any = source.load()
    plan = LayerDrop(drop=(1,)).plan(trace_model(model, source.family), None).plan  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="per-layer embedding"):
        rewrite(model, source.family, [plan])
    before = run(source, model)
    without = DropBranch(block="model.layers.1", branch="attention", component="shared")
    edited = rewrite(source.load(), source.family, [Plan(pass_name="test", edits=(without,))])
    model.get_submodule("model.layers.1.self_attn.o_proj").weight.data.zero_()
    assert apart(run(source, edited), run(source, model)) < 1e-5 < apart(run(source, edited), before)


def test_a_configuration_that_computes_its_kinds_of_layers_is_told(home: Path, tmp_path: Path) -> None:
    """Jamba's are counted off by a period. The model says what it has, and its folder is not taken for a plain one."""
    found("JambaForCausalLM", home)
    source = open_source(str(home / "JambaForCausalLM" / "source"))
    model: Any = source.load()
    kinds = model.config.layers_block_type
    plan = Plan(pass_name="test", edits=(DropBlock(block="model.layers.0"),))
    rewrite(model, source.family, [plan])
    assert model.config.layers_block_type == kinds[1:]
    assert isinstance(source.family.plain(model, source.folder, [plan]), str)
    record = CompressionRecord(base="x", family="transformers", plans=(plan,))
    save_compressed(model, source.family, tmp_path / "out", record, source.folder)
    with pytest.raises(ValueError, match="load_it_with_umcompress"):
        type(model).from_pretrained(tmp_path / "out")


def test_work_that_needs_values_is_left_out_and_sizes_are_told(home: Path) -> None:
    built("DbrxForCausalLM", home / "dbrx")
    seen = inspect_model(str(home / "dbrx"), None)
    assert seen.parameters.total > 0 and not seen.macs_per_token
    assert json.loads(seen.model_dump_json())["missing"]
