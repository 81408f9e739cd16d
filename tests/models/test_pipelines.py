"""Pipelines of diffusers: found, cut, saved and loaded again; a tiny Qwen-Image with random weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_models import config_of, qwen_image
from torch import nn

import umcompress
from umcompress.calibrate.collect import collect
from umcompress.calibrate.declare import BlockSimilarity, BranchSimilarity, ChannelActivation, Scope
from umcompress.documents.plan import (
    CompressionRecord,
    DropBlock,
    DropBranch,
    Edit,
    KeepChannels,
    Plan,
    SplitExperts,
)
from umcompress.documents.sampling import Sampling
from umcompress.errors import ModelError, UsageError
from umcompress.graph.lower import lower, lowered_graph
from umcompress.graph.model_graph import trace_model
from umcompress.models.items import GenerationItem
from umcompress.models.measure import weigh
from umcompress.models.pipelines.painting import PaintingSettings
from umcompress.models.plain_folder import Plain
from umcompress.models.save import save_compressed, save_plain
from umcompress.models.source import Source, open_source
from umcompress.passes.layer_drop import LayerDrop
from umcompress.rewrite.apply import rewrite
from umcompress.run.out_of_core import open_on_disk

pytest.importorskip("diffusers")

TEXT, PAINT = "text_encoder.model.language_model.layers", "transformer.transformer_blocks"
SETTINGS = PaintingSettings(steps=2, guidance=4.0, height=16, width=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen_image(tmp_path_factory.mktemp("pipelines") / "qwen-image")


@pytest.fixture
def source(folder: Path) -> Source:
    return open_source(str(folder))


def painted(source: Source, model: nn.Module) -> Any:
    runner: Any = source.runner(model)
    return runner.painter.call("a red cat", torch.Generator().manual_seed(0), SETTINGS)


def by_diffusers(folder: Path) -> tuple[Any, Any]:
    """The pipeline that diffusers loads, and the picture that it paints."""
    import diffusers

    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, called(pipeline)


def called(pipeline: Any) -> Any:
    return pipeline(
        "a red cat", negative_prompt=" ", height=16, width=16, num_inference_steps=2, true_cfg_scale=4.0,
        generator=torch.Generator().manual_seed(0), output_type="np",
    ).images[0]  # fmt: skip


def written(source: Source, model: nn.Module, edits: Sequence[Edit], folder: Path) -> Plain | str:
    """Take a model through the edits and write it as a run does."""
    plans = [Plan(pass_name="test", edits=tuple(edits))]
    rewrite(model, source.family, plans)
    plain = source.family.plain(model, source.folder, plans)
    if isinstance(plain, str):
        record = CompressionRecord(base=source.name, family=source.family.name, plans=tuple(plans))
        save_compressed(model, source.family, folder, record, source.folder)
    else:
        save_plain(plain, folder, source.folder)
    return plain


def test_stacks_components_and_sites_are_found(source: Source) -> None:
    graph = trace_model(source.skeleton(), source.family)
    assert graph.stacks["text_encoder"] == TEXT and graph.stacks["transformer"] == PAINT
    assert {site.component for site in graph.blocks(stack="text_encoder")} == {"understanding"}
    parts = [(branch.kind, branch.part) for branch in graph.blocks(stack="transformer")[0].branches]
    assert parts == [("attention", "attn"), ("feed_forward", "img_mlp.net"), ("feed_forward", "txt_mlp.net")]
    found = [site.path for site in graph.feed_forwards(component="generation")]
    assert found[:2] == [f"{PAINT}.0.img_mlp.net", f"{PAINT}.0.txt_mlp.net"] and len(found) == 6
    # Without a stack steps mean the text encoder's language model and the transformer; not the vision tower.
    assert {site.stack for site in graph.blocks()} == {"text_encoder", "transformer"}


def test_inner_layers_are_those_of_the_own_component(source: Source) -> None:
    graph = trace_model(source.skeleton(), source.family)
    for component, layers in (("understanding", {1, 2}), ("generation", {1})):
        wanted = LayerDrop(component=component, layers="inner", drop_count=1)  # type: ignore[arg-type]
        assert wanted.resolve(graph).layers == frozenset(layers)


def test_a_skeleton_counts_what_the_model_counts(source: Source) -> None:
    shapes, model = source.skeleton(), source.load()
    counted = weigh(shapes, source.family, source.runner(shapes))
    assert counted == weigh(model, source.family, source.runner(model))
    assert set(counted.macs_per_token) == {"understanding", "generation"}
    tower = sum(p.numel() for p in model.get_submodule("text_encoder.model.visual").parameters())
    assert counted.parameters.active["generation"] <= counted.parameters.total - tower


def test_traced_blocks_paint_the_same_bits(source: Source) -> None:
    model = source.load()
    before, graph = painted(source, model), trace_model(model, source.family)
    for block in graph.blocks(stack="transformer"):
        lower(model.get_submodule(block.path), graph.block_graph(block.path))
    assert lowered_graph(model.get_submodule(f"{PAINT}.0")) is not None
    assert np.array_equal(painted(source, model), before) and before.std() > 0.01


def test_dropped_blocks_are_loaded_by_diffusers_and_paint_the_same_bits(source: Source, tmp_path: Path) -> None:
    model = source.load()
    edits = [DropBlock(block=f"{TEXT}.1"), DropBlock(block=f"{PAINT}.0")]
    plain = written(source, model, edits, tmp_path / "out")
    assert isinstance(plain, Plain) and plain.loads_with == "diffusers"
    pipeline, picture = by_diffusers(tmp_path / "out")
    assert np.array_equal(picture, painted(source, model))
    assert config_of(tmp_path / "out", "transformer")["num_layers"] == 2
    assert len(pipeline.transformer.transformer_blocks) == 2
    assert pipeline.text_encoder.config.text_config.num_hidden_layers == 3
    parts = (pipeline.transformer, pipeline.text_encoder, pipeline.vae)
    assert not any(parameter.is_meta for part in parts for parameter in part.parameters())


def test_dropping_a_block_of_the_transformer_is_to_pass_its_streams_by(source: Source) -> None:
    model, other = source.load(), source.load()
    rewrite(model, source.family, [Plan(pass_name="test", edits=(DropBlock(block=f"{PAINT}.1"),))])
    for name in ("img_mod.1", "txt_mod.1"):  # gates of zero
        linear: Any = other.get_submodule(f"{PAINT}.1.{name}")
        nn.init.zeros_(linear.weight), nn.init.zeros_(linear.bias)
    assert np.abs(painted(source, model) - painted(source, other)).max() < 1e-5


def test_one_stream_loses_its_feed_forward(source: Source, tmp_path: Path) -> None:
    model, other = source.load(), source.load()
    drop = DropBranch(block=f"{PAINT}.0", branch="feed_forward", component="generation", part="txt_mlp.net")
    plain = written(source, model, [drop], tmp_path / "out")
    assert isinstance(plain, str) and "transformer" in plain
    last: Any = other.get_submodule(f"{PAINT}.0.txt_mlp.net.2")
    nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)
    assert np.abs(painted(source, model) - painted(source, other)).max() < 1e-5
    block = model.get_submodule(f"{PAINT}.0")
    assert hasattr(block, "img_mlp") and not hasattr(block, "txt_mlp")
    # Ours, as a pipeline object; diffusers refuses it and does not leave a part out.
    pipeline = umcompress.load(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    assert np.array_equal(called(pipeline), painted(source, model))
    with pytest.raises((ValueError, AttributeError), match="umcompress"):
        by_diffusers(tmp_path / "out")


def test_both_feed_forwards_of_a_block_go_one_after_the_other(source: Source) -> None:
    model = source.load()
    drops = [
        DropBranch(block=f"{PAINT}.0", branch="feed_forward", component="generation", part=part)
        for part in ("txt_mlp.net", "img_mlp.net")
    ]
    rewrite(model, source.family, [Plan(pass_name="test", edits=tuple(drops))])
    assert {name for name, _ in model.get_submodule(f"{PAINT}.0").named_children()}.isdisjoint({"img_mlp", "txt_mlp"})


def test_feed_forwards_go_by_their_names_when_the_attention_is_gone(source: Source) -> None:
    """The modulations of a branch are its own then, and are no part of the feed-forward."""
    model = source.load()
    for branch, part in (("attention", "attn"), ("feed_forward", "txt_mlp.net")):
        drop = DropBranch.model_validate(
            {"block": f"{PAINT}.0", "branch": branch, "component": "generation", "part": part}
        )
        rewrite(model, source.family, [Plan(pass_name="test", edits=(drop,))])
    assert hasattr(model.get_submodule(f"{PAINT}.0"), "img_mlp")
    assert not hasattr(model.get_submodule(f"{PAINT}.0"), "txt_mlp")


def test_cut_channels_are_channels_of_zeros(source: Source, tmp_path: Path) -> None:
    model, other = source.load(), source.load()
    keep = tuple(range(0, 192, 2))
    sites = [f"{PAINT}.{index}.{stream}.net" for index in range(3) for stream in ("img_mlp", "txt_mlp")]
    plain = written(source, model, [KeepChannels(site=site, keep=keep) for site in sites], tmp_path / "out")
    assert isinstance(plain, str) and "no field" in plain
    for site in sites:
        last: Any = other.get_submodule(f"{site}.2")
        last.weight.data[:, 1::2] = 0
    assert np.abs(painted(source, model) - painted(source, other)).max() < 1e-5
    again = open_source(str(tmp_path / "out"))
    assert np.array_equal(painted(again, again.load()), painted(source, model))


def test_experts_that_are_all_active_paint_as_before(source: Source) -> None:
    model = source.load()
    before = painted(source, model)
    groups = tuple(tuple(range(start, 192, 4)) for start in range(4))
    split = SplitExperts(site=f"{PAINT}.0.img_mlp.net", experts=groups, active=4)
    rewrite(model, source.family, [Plan(pass_name="test", edits=(split,))])
    assert np.abs(painted(source, model) - before).max() < 1e-5


def test_a_text_encoder_answers_about_pictures(source: Source) -> None:
    runner: Any = source.runner(source.load())
    grey = np.full((28, 28, 3), 99, np.uint8)
    assert runner.tasks == ("understanding", "generation") and runner.reads_pictures
    assert len(runner.answer([grey, None], ["what is it?", "and?"], max_new_tokens=2)) == 2
    (likely,) = runner.score([grey], ["what?"], [["a cat"]])
    assert likely[0].nats < 0


def test_settings_of_a_recipe_reach_the_pipeline(folder: Path) -> None:
    source = open_source(str(folder), sampling=Sampling(steps=1, height=16, width=24))
    (picture,) = source.runner(source.load()).generate(["a cat"], seed=3)
    assert picture.shape == (16, 24, 3) and picture.dtype == np.uint8
    with pytest.raises(UsageError, match="width"):
        wrong = open_source("bagel-mini", sampling=Sampling(width=32))
        wrong.runner(wrong.skeleton())


def test_what_reads_prompts_is_calibrated_without_painting(source: Source) -> None:
    model = source.load()
    runner: Any = source.runner(model)
    graph = trace_model(model, source.family)
    calls = []
    model.get_submodule("transformer").register_forward_hook(lambda *_: calls.append(1))
    items = [GenerationItem("a red cat", 0)]
    read = BlockSimilarity(Scope("understanding", "text_encoder"))
    values = collect(graph, [read], lambda: runner.feed(items))[read]
    assert not calls and values[graph.blocks(stack="text_encoder")[0], "understanding"].tokens > 0
    runner.settings(steps=1, height=16, width=16)
    paints = BlockSimilarity(Scope("generation", "transformer"))
    collect(graph, [paints], lambda: runner.feed(items))
    assert len(calls) == 2  # one step, with and without the prompt


def cosines(before: list[torch.Tensor], after: list[torch.Tensor]) -> float:
    """The mean over tokens, each rows of one call, in float64."""
    pairs = [(x.double().flatten(0, -2), y.double().flatten(0, -2)) for x, y in zip(before, after, strict=True)]
    every = torch.cat([(x * y).sum(-1) / x.norm(dim=-1) / y.norm(dim=-1) for x, y in pairs])
    return float(every.mean())


def test_similarities_of_both_streams_against_a_direct_computation(source: Source) -> None:
    model = source.load()
    runner: Any = source.runner(model)
    graph = trace_model(model, source.family)
    runner.settings(steps=2, height=16, width=16)
    block: Any = model.get_submodule(f"{PAINT}.1")
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in ("in", "out", "text", "after text")}
    hooks = [
        block.register_forward_pre_hook(
            lambda _, args, given: rows["in"].extend([given["hidden_states"], given["encoder_hidden_states"]]),
            with_kwargs=True,
        ),
        block.register_forward_hook(lambda _, args, out: rows["out"].extend([out[1], out[0]])),
        block.txt_norm2.register_forward_pre_hook(lambda _, args: rows["text"].append(args[0])),
        block.register_forward_hook(lambda _, args, out: rows["after text"].append(out[0])),
    ]
    items = [GenerationItem("a red cat", 0)]
    with torch.no_grad():
        runner.feed(items)
    for hook in hooks:
        hook.remove()
    whole = BlockSimilarity(Scope("generation", "transformer"))
    branch = BranchSimilarity("feed_forward", Scope("generation", "transformer"))
    found = collect(graph, [whole, branch], lambda: runner.feed(items))
    site = graph.blocks(stack="transformer")[1]
    assert found[whole][site, "generation"].cosine == pytest.approx(cosines(rows["in"], rows["out"]), abs=1e-9)
    text = next(one for one in site.branches if one.part == "txt_mlp.net")
    assert found[branch][text].cosine == pytest.approx(cosines(rows["text"], rows["after text"]), abs=1e-9)


def test_channels_of_the_text_encoder_against_a_direct_computation(source: Source) -> None:
    """Over the prompt and the negative prompt, as both are read for a picture."""
    model = source.load()
    runner: Any = source.runner(model)
    graph = trace_model(model, source.family)
    feed_forward: Any = model.get_submodule(f"{TEXT}.2.mlp")
    inner: list[torch.Tensor] = []
    hook = feed_forward.register_forward_pre_hook(
        lambda module, args: inner.append(nn.functional.silu(module.gate_proj(args[0])) * module.up_proj(args[0]))
    )
    for prompt in ("a red cat", " "):
        runner.painter.pipeline().encode_prompt(prompt)
    hook.remove()
    wanted = ChannelActivation(Scope("understanding", "text_encoder"))
    found = collect(graph, [wanted], lambda: runner.feed([GenerationItem("a red cat", 0)]))[wanted]
    site = next(one for one in graph.feed_forwards(stack="text_encoder") if one.index == 2)
    direct = torch.cat([rows.flatten(0, -2).double().abs() for rows in inner]).mean(0)
    assert torch.allclose(found[site].mean_abs, direct, atol=1e-9)


def test_out_of_core_gives_the_bits_of_in_memory(folder: Path, tmp_path: Path) -> None:
    source = open_source(str(folder), sampling=Sampling(steps=1, height=16, width=16))
    edits = [DropBlock(block=f"{TEXT}.1"), DropBlock(block=f"{PAINT}.0")]
    model = source.load()
    assert isinstance(written(source, model, edits, tmp_path / "whole"), Plain)
    held = open_on_disk(source)
    graph, items = held.graph(), [GenerationItem("a red cat", 0)]
    read, paint = (BlockSimilarity(Scope(of, name)) for of, name in (
        ("understanding", "text_encoder"), ("generation", "transformer")
    ))  # fmt: skip
    whole = source.load()
    runner: Any = source.runner(whole)
    for one in (read, paint):
        streamed = collect(graph, [one], lambda: held.feed(items))[one]
        direct = collect(trace_model(whole, source.family), [one], lambda: runner.feed(items))[one]
        for block in graph.blocks(component=one.scope.component):
            assert streamed[block, block.component] == direct[block, block.component]
    plan = Plan(pass_name="test", edits=tuple(edits))
    held.apply(plan, {})
    held.write(tmp_path / "disk", CompressionRecord(base=source.name, family=source.family.name, plans=(plan,)))
    for file in (file for file in (tmp_path / "whole").rglob("*") if file.is_file()):
        assert (tmp_path / "disk" / file.relative_to(tmp_path / "whole")).read_bytes() == file.read_bytes()
    probed = held.probe()
    assert all(torch.equal(value, probed[name]) for name, value in source.runner(model).probe().items())


def test_a_text_encoder_alone_finds_its_tokenizer_beside_it(folder: Path, tmp_path: Path) -> None:
    source = open_source(str(folder / "text_encoder"))
    model = source.load()
    assert source.runner(model).tokenizer.ids("a cat")
    plain = written(source, model, [DropBlock(block="model.language_model.layers.1")], tmp_path / "out")
    assert isinstance(plain, Plain)
    again = open_source(str(tmp_path / "out"))
    assert again.runner(again.skeleton()).tokenizer.ids("a cat") == source.runner(model).tokenizer.ids("a cat")


def test_without_diffusers_it_is_said_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"umcompress\[diffusers\]"):
        open_source(str(folder)).skeleton()


def test_an_index_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("[]")
    with pytest.raises(ModelError, match="no index of a pipeline"):
        open_source(str(tmp_path)).skeleton()
