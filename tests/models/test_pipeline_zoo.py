"""The laws of edits on the denoisers of many pipelines of diffusers; docs/pipelines.md is made of what they find.

`UMCOMPRESS_WRITE_GOLDEN=1 python -m pytest tests/models/test_pipeline_zoo.py` writes the table.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from pipeline_models import awaken
from pipeline_zoo import ZOO, Denoiser
from places import DOCS
from torch import Tensor, nn

from umcompress.documents.plan import DropBlock, DropBranch, Edit, KeepChannels, Plan, SplitExperts
from umcompress.errors import PlanError
from umcompress.graph.lower import lower
from umcompress.graph.model_graph import ModelGraph, trace_model
from umcompress.graph.streams import bound, streams_of
from umcompress.models.pipelines.depth import BY_NUMBER, FIRST_READ
from umcompress.models.plain_folder import Plain
from umcompress.models.save import save_plain
from umcompress.models.source import Source, open_source
from umcompress.rewrite.apply import rewrite, shapes_only

diffusers = pytest.importorskip("diffusers")

DOCUMENT = DOCS / "pipelines.md"
BEGIN = "<!-- written by the test run from here on -->\n"
EVERY = pytest.mark.parametrize("denoiser", ZOO, ids=lambda one: one.name)


@cache
def stored(name: str) -> Source:
    """A folder whose index has nothing but the denoiser."""
    denoiser = next(one for one in ZOO if one.name == name)
    folder = Path(mkdtemp()) / "pipeline"
    torch.manual_seed(0)
    model = getattr(diffusers, denoiser.kind)(**denoiser.config)
    awaken(model)
    model.save_pretrained(folder / "transformer")
    index = {"_class_name": "DiffusionPipeline", "transformer": ["diffusers", denoiser.kind]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return open_source(str(folder))


def output(denoiser: Denoiser, model: Any) -> Tensor:
    with torch.no_grad():
        found = model(**denoiser.inputs(), return_dict=False)[0]
    return found[0] if isinstance(found, list | tuple) else found


def edited(source: Source, edits: Sequence[Edit]) -> nn.Module:
    model = source.load()
    rewrite(model, source.family, [Plan(pass_name="test", edits=tuple(edits))])
    return model


def traced(source: Source) -> ModelGraph:
    return trace_model(source.skeleton(), source.family)


def near(left: Tensor, right: Tensor) -> bool:
    return float((left - right).abs().max()) <= 1e-5 * max(1.0, float(right.abs().max()))


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
            zeroed.get_submodule(site.consumer).weight.data[:, 1::2] = 0
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
            ", ".join(kinds) or "none: as a whole", ", ".join(widths) or "none", _depth(denoiser),
            _width(source, stack),
        ]) + " |")  # fmt: skip
    return lines


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
    columns = ("denoiser", "stack", "traced", "branches of a block", "feed-forwards", "fewer blocks load in",
               "fewer channels load in")  # fmt: skip
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for denoiser in ZOO:
        lines += row(denoiser)
    found = "\n".join(["", *lines, ""])
    if os.environ.get("UMCOMPRESS_WRITE_GOLDEN"):
        DOCUMENT.write_text(head + BEGIN + found, encoding="utf-8")
        return
    assert written == found
