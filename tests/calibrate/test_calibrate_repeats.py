"""What a sampler sends through the model in every step is counted once."""

from __future__ import annotations

from pathlib import Path

import torch
from pico_passes import bench
from tiny_bagel import DECODER, write_tiny_bagel

from umcompress.calibrate.collect import collect
from umcompress.calibrate.declare import (
    BlockSimilarity,
    ChannelActivation,
    ChannelSamples,
    Declaration,
    HeadContribution,
)
from umcompress.graph.model_graph import trace_model
from umcompress.graph.repeats import counts, repeated
from umcompress.models.items import GenerationItem
from umcompress.models.source import open_source

PROMPTS = ("a striped red star", "draw two plain blue crosses please")
STEPS, LATENTS, MARKERS = 3, 9, 2


def test_only_the_named_components_are_left_out_and_only_inside() -> None:
    with repeated("understanding"):
        assert not counts("understanding")
        assert counts("generation")
        with repeated("generation"):
            assert not (counts("understanding") or counts("generation"))
        assert counts("generation")
    assert counts("understanding")


def test_rows_that_are_repeated_change_no_statistic() -> None:
    pico = bench()
    declarations: list[Declaration] = [
        BlockSimilarity(), ChannelActivation(), ChannelSamples(tokens=8, seed=0), HeadContribution()
    ]  # fmt: skip

    def twice() -> None:
        pico.feed()
        with repeated("understanding", "generation"):
            pico.feed()

    once, again = collect(pico.graph, declarations, pico.feed), collect(pico.graph, declarations, twice)
    for site in pico.graph.feed_forwards():
        one, other = once[ChannelActivation()][site], again[ChannelActivation()][site]
        assert one.tokens == other.tokens
        assert torch.equal(one.mean_abs, other.mean_abs)
        drawn = declarations[2]
        assert torch.equal(once[drawn][site].channels, again[drawn][site].channels)
    for block in pico.graph.blocks():
        one_, other_ = (found[BlockSimilarity()][block, "understanding"] for found in (once, again))
        assert one_ == other_


def test_markers_around_a_picture_are_counted_in_the_first_step_alone(tmp_path: Path) -> None:
    source = open_source(str(write_tiny_bagel(tmp_path / "model")))
    model = source.load()
    runner = source.runner(model)
    graph = trace_model(model, source.family)
    items = [GenerationItem(prompt, seed) for seed, prompt in enumerate(PROMPTS)]
    found = collect(graph, [ChannelActivation()], lambda: runner.feed(items), "generation")[ChannelActivation()]
    words = sum(len(prompt.split()) + 2 for prompt in PROMPTS)
    branches = 2  # with and without the prompt
    tokens = {site.path: found[site].tokens for site in graph.feed_forwards()}
    assert tokens[f"{DECODER}.0.mlp"] == words + branches * MARKERS * len(PROMPTS)
    assert tokens[f"{DECODER}.0.mlp_moe_gen"] >= STEPS * LATENTS * len(PROMPTS)
