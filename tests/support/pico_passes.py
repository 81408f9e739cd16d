"""What the tests of passes share: a pico model with its graph, calibration of it, and plain float64 walks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pico import PicoFamily, PicoUnified, unified, unified_inputs
from torch import Tensor, nn

from umcompress.calibrate.collect import collect
from umcompress.documents.plan import Edit, Plan
from umcompress.extend import Statistics
from umcompress.extend.pass_base import Pass, Proposal
from umcompress.graph.model_graph import ModelGraph, trace_model
from umcompress.rewrite.apply import rewrite

Streams = tuple[Tensor, Tensor]


@dataclass
class Bench:
    """A double-precision model, its graph, and the inputs it is calibrated on."""

    model: Any  # a PicoUnified; what is read of its blocks has no types of its own
    graph: ModelGraph
    feeds: list[tuple[Tensor, Tensor, Tensor]]

    def feed(self, model: nn.Module | None = None) -> None:
        for inputs in self.feeds:
            (model or self.model)(*inputs)

    def rework(self, edits: Sequence[Edit]) -> tuple[ModelGraph, Callable[[], None]]:
        edited = rewrite(
            copy.deepcopy(self.model), PicoFamily(), [Plan(pass_name="copy", edits=tuple(edits))]
        )
        return trace_model(edited, PicoFamily()), lambda: self.feed(edited)

    def measure(self, asked: Pass, task: str = "understanding") -> Statistics:
        return collect(self.graph, asked.needs(), self.feed, task, self.rework)

    def plan(self, asked: Pass) -> Proposal:
        return asked.plan(self.graph, self.measure(asked))

    def apply(self, proposal: Proposal) -> Any:
        """The plan on a copy, in memory: a PicoUnified."""
        edited = copy.deepcopy(self.model)
        rewrite(edited, PicoFamily(), [proposal.plan], [dict(proposal.tensors)])
        return edited


def bench(seed: int = 0, calls: int = 3, dtype: torch.dtype = torch.float64, **sizes: int) -> Bench:
    model = unified(seed, **sizes).to(dtype)
    feeds = []
    for call in range(calls):
        _, pixels, latent = unified_inputs(seed + call + 1, dtype)
        ids = torch.randint(0, 16, (3 + call,), generator=torch.Generator().manual_seed(call))
        feeds.append((ids, pixels, latent[: 2 + call]))
    return Bench(model, trace_model(model, PicoFamily()), feeds)


def streams_before(model: PicoUnified, ids: Tensor, pixels: Tensor, latent: Tensor) -> Streams:
    seen = pixels
    for block in model.vision:
        seen = block(seen, None)
    return torch.cat([model.embed(ids), seen]), latent * model.scale


@torch.no_grad()
def walk(model: PicoUnified, inputs: tuple[Tensor, Tensor, Tensor]) -> list[tuple[Streams, Streams, Streams]]:
    """(before, between attention and feed-forward, after) of every decoder block, written out by hand."""
    und, gen = streams_before(model, *inputs)
    trail = []
    block: Any
    for block in model.layers:
        a, b = block.self_attn(block.input_layernorm(und), block.input_layernorm_gen(gen), None)
        between = (und + a, gen + b)
        after = (
            between[0] + block.mlp(block.post_attention_layernorm(between[0])),
            between[1] + block.mlp_gen(block.post_attention_layernorm_gen(between[1])),
        )
        trail.append(((und, gen), between, after))
        und, gen = after
    return trail


def mean_cosine(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    cosines: list[float] = []
    for x, y in pairs:
        for row, other in zip(x, y, strict=True):
            cosines.append(float(row @ other) / (float(row @ row) ** 0.5 * float(other @ other) ** 0.5))
    return sum(cosines) / len(cosines)


def assert_products(found: Tensor, h: Tensor) -> None:
    """The second moment of rows h (T, width) in float64, but for products of what varies, made in float32."""
    spread = h.std(0, correction=0)
    differences = (found - h.T @ h / len(h)).abs()
    assert bool((differences <= 1e-6 * torch.outer(spread, spread) + 1e-12).all()), float(differences.max())


def inputs_of(bench: Bench, path: str) -> Tensor:
    """Everything that enters a Linear while the plain model runs, (T, width)."""
    seen: list[Tensor] = []
    handle = bench.model.get_submodule(path).register_forward_hook(
        lambda _m, args, _out: seen.append(args[0])
    )
    with torch.no_grad():
        bench.feed()
    handle.remove()
    return torch.cat([x.reshape(-1, x.shape[-1]) for x in seen]).double()
