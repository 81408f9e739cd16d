"""The laws of edits on the denoisers of many pipelines of diffusers; docs/pipelines.md is made of what they find.

`UMCOMPRESS_WRITE_GOLDEN=1 python -m pytest tests/models/test_pipeline_zoo.py` writes the table.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from denoisers import edited, near, output, second_head_away, stored, traced
from pipeline_zoo import ZOO, Denoiser
from places import DOCS
from torch import Tensor, nn

from umcompress.documents.plan import (
    CompressionRecord,
    DropBlock,
    DropBranch,
    Edit,
    KeepChannels,
    Plan,
    SplitExperts,
)
from umcompress.errors import PlanError
from umcompress.graph.lower import lower
from umcompress.graph.model_graph import ModelGraph, trace_model
from umcompress.graph.streams import bound, streams_of
from umcompress.models.pipelines.depth import BY_NUMBER, FIRST_READ
from umcompress.models.plain_folder import Plain
from umcompress.models.save import save_compressed, save_plain
from umcompress.models.source import Source, open_source
from umcompress.rewrite.apply import shapes_only

diffusers = pytest.importorskip("diffusers")

DOCUMENT = DOCS / "pipelines.md"
BEGIN = "<!-- written by the test run from here on -->\n"
# Their norms or linears take all heads at once.
WITHOUT_HEADS = ("Wan", "LTX-Video", "PRX")
EVERY = pytest.mark.parametrize("denoiser", ZOO, ids=lambda one: one.name)


@EVERY
def test_traced_blocks_compute_the_same_bits(denoiser: Denoiser) -> None:
    source = stored(denoiser.name)
    model: Any = source.load()
    before, graph = output(denoiser, model.transformer), trace_model(model, source.family)
    assert torch.isfinite(before).all() and before.std() > 1e-3
    known = [block for block in graph.blocks(stack="all") if graph.block(block.path).untraced is None]
    assert known
    for block in known:
        lower(model.get_submodule(block.path), graph.block_graph(block.path))
    assert torch.equal(output(denoiser, model.transformer), before)


@EVERY
def test_cuts_do_what_zeros_do(denoiser: Denoiser) -> None:
    source = stored(denoiser.name)
    graph = traced(source)
    sites = graph.feed_forwards(stack="all")
    if sites:
        cut: Any = edited(source, [KeepChannels(site=s.path, keep=tuple(range(0, s.width, 2))) for s in sites])
        zeroed: Any = source.load()
        for site in sites:
            own = slice(site.consumer_start + 1, site.consumer_start + site.width, 2)
            zeroed.get_submodule(site.consumer).weight.data[:, own] = 0
        assert near(output(denoiser, cut.transformer), output(denoiser, zeroed.transformer))
    for site in (site for site in sites if site.index == 0):
        of_site = [b for b in graph.branches("feed_forward", stack=site.stack) if b.block == site.block]
        branch = next((b for b in of_site if not b.part or f"{site.path}.".startswith(f"{b.path}.")), None)
        if branch is None:
            continue
        drop = DropBranch(block=branch.block, branch=branch.kind, component="generation", part=branch.part)
        without: Any = edited(source, [drop])
        zeroed = source.load()
        last = zeroed.get_submodule(site.consumer)
        last.weight.data.zero_()
        if last.bias is not None:
            last.bias.data.zero_()
        assert near(output(denoiser, without.transformer), output(denoiser, zeroed.transformer)), branch.path


@EVERY
def test_fewer_heads_and_channels_do_what_zeros_do_and_load_again(denoiser: Denoiser, tmp_path: Path) -> None:
    """In one plan: where a linear reads both, each cut moves the columns of the other."""
    source = stored(denoiser.name)
    graph = traced(source)
    attentions, feed_forwards = graph.attentions(stack="all"), graph.feed_forwards(stack="all")
    assert bool(attentions) == (denoiser.name not in WITHOUT_HEADS)
    edits: list[Edit] = [second_head_away(site) for site in attentions]
    edits += [KeepChannels(site=site.path, keep=tuple(range(1, site.width))) for site in feed_forwards]
    if not edits:
        return
    cut: Any = edited(source, edits)
    zeroed: Any = source.load()
    for site in attentions:
        for path, start in site.outputs:
            columns = slice(start + site.head_dim, start + 2 * site.head_dim)
            zeroed.get_submodule(path).weight.data[:, columns] = 0
    for place in feed_forwards:
        zeroed.get_submodule(place.consumer).weight.data[:, place.consumer_start] = 0
    assert near(output(denoiser, cut.transformer), output(denoiser, zeroed.transformer))
    plan = Plan(pass_name="test", edits=tuple(edits))
    record = CompressionRecord(base=source.name, family=source.family.name, plans=(plan,))
    save_compressed(cut, source.family, tmp_path / "out", record, source.folder)
    again: Any = open_source(str(tmp_path / "out")).load()
    assert torch.equal(output(denoiser, again.transformer), output(denoiser, cut.transformer))


def passes_by(block: nn.Module) -> None:
    """Let a block give back the streams that it gets."""
    streams = streams_of(block)

    def instead(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        given = bound(block, args, kwargs)
        if not isinstance(out, tuple):
            return next(value for value in given.values() if isinstance(value, Tensor) and value.shape == out.shape)
        parts = list(out)
        for name, place in streams.items():
            parts[place] = given[name] if parts[place] is not None else None
        return tuple(parts)

    block.register_forward_hook(instead, with_kwargs=True)


@EVERY
def test_a_dropped_block_passes_its_streams_by_and_diffusers_loads_the_rest(
    denoiser: Denoiser, tmp_path: Path
) -> None:
    source = stored(denoiser.name)
    stacks = list(source.family.stacks(source.skeleton()).values())
    for number, path in enumerate(stacks):
        drop = DropBlock(block=f"{path}.0")
        if denoiser.kind in BY_NUMBER or denoiser.kind in FIRST_READ:
            with pytest.raises(PlanError, match="drop blocks 0"):
                edited(source, [drop])
            continue
        model: Any = edited(source, [drop])
        idle: Any = source.load()
        passes_by(idle.get_submodule(f"{path}.0"))
        ours = output(denoiser, model.transformer)
        assert near(ours, output(denoiser, idle.transformer)), path
        plain = source.family.plain(model, source.folder, ())
        if isinstance(plain, str):
            # Two stacks have one field for both of their numbers: diffusers builds what has lost a block of each.
            model = edited(source, [DropBlock(block=f"{each}.0") for each in stacks])
            ours, plain = output(denoiser, model.transformer), source.family.plain(model, source.folder, ())
        assert isinstance(plain, Plain), plain
        save_plain(plain, tmp_path / str(number), source.folder)
        again = getattr(diffusers, denoiser.kind).from_pretrained(tmp_path / str(number) / "transformer")
        assert not any(parameter.is_meta for parameter in again.parameters())
        assert torch.equal(output(denoiser, again.eval()), ours)


@EVERY
def test_experts_that_are_all_active_are_the_dense_model(denoiser: Denoiser) -> None:
    source = stored(denoiser.name)
    graph = traced(source)
    sites = [site for site in graph.feed_forwards(stack="all") if not isinstance(graph.split_place(site), str)]
    splits = [
        SplitExperts(site=s.path, experts=tuple(tuple(range(k, s.width, 4)) for k in range(4)), active=4)
        for s in sites if s.width % 4 == 0
    ]  # fmt: skip
    if splits:
        model: Any = edited(source, splits)
        dense: Any = source.load()
        assert near(output(denoiser, model.transformer), output(denoiser, dense.transformer))


def row(denoiser: Denoiser) -> list[str]:
    """One line for each stack."""
    source = stored(denoiser.name)
    graph, lines = traced(source), []
    for stack, path in graph.stacks.items():
        first = graph.blocks(stack=stack)[0]
        kinds = [f"{b.kind.replace('_', '-')}{f' {b.part}' if b.part else ''}" for b in first.branches]
        sites = [site for site in graph.feed_forwards(stack=stack) if site.block == first.path]
        widths = [f"{'gated ' if site.gated else ''}{site.activation} {site.width}" for site in sites]
        untraced = graph.block(first.path).untraced is not None
        lines.append("| " + " | ".join([
            denoiser.name, f"`{path.removeprefix('transformer.')}`", "no" if untraced else "yes",
            ", ".join(kinds) or "none: as a whole", _heads(graph, first.path), ", ".join(widths) or "none",
            _depth(denoiser),
            _width(source, stack),
        ]) + " |")  # fmt: skip
    return lines


def _heads(graph: ModelGraph, block: str) -> str:
    """Query heads of each attention, in how many groups where these are fewer; or why they cannot be cut."""
    sites = [site for site in graph.attentions(stack="all") if site.block == block]
    if not sites:
        gaps = [gap for gap in graph.gaps() if gap.path == block and gap.kind == "attention"]
        return gaps[0].reason.partition(": ")[2] if gaps else "-"
    counts = [(site.query_heads, site.key_value_groups) for site in sites]
    return ", ".join(f"{heads}" if heads == groups else f"{heads} in {groups}" for heads, groups in counts)


def _depth(denoiser: Denoiser) -> str:
    if denoiser.kind in FIRST_READ:
        return f"diffusers; not without the first: {FIRST_READ[denoiser.kind]}"
    return f"refused: {BY_NUMBER[denoiser.kind]}" if denoiser.kind in BY_NUMBER else "diffusers"


def _width(source: Source, stack: str) -> str:
    sites = traced(source).feed_forwards(stack=stack)
    if not sites:
        return "-"
    every = traced(source).feed_forwards(stack="all")
    for some in (sites, every):
        model = source.skeleton()
        edits = tuple(KeepChannels(site=site.path, keep=tuple(range(0, site.width, 2))) for site in some)
        shapes_only(model, source.family, [Plan(pass_name="test", edits=edits)])
        if isinstance(source.family.plain(model, source.folder, ()), Plain):
            return "diffusers" if some is sites else "diffusers, with the other stacks"
    return "umcompress"


def test_the_table_is_what_the_models_show() -> None:
    head, _, written = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    columns = ("denoiser", "stack", "traced", "branches of a block", "heads", "feed-forwards", "fewer blocks load in",
               "fewer channels load in")  # fmt: skip
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for denoiser in ZOO:
        lines += row(denoiser)
    found = "\n".join(["", *lines, ""])
    if os.environ.get("UMCOMPRESS_WRITE_GOLDEN"):
        DOCUMENT.write_text(head + BEGIN + found, encoding="utf-8")
        return
    assert written == found
