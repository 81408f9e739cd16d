"""Predict the memory that a recipe needs from shapes alone: with the model in memory, and out of core."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from umcompress.calibrate.declare import Declaration, Heavy
from umcompress.calibrate.on_demand import groups, sizes
from umcompress.checkpoint.parts import PIECE
from umcompress.documents.previews import Memory
from umcompress.extend import Calibration, ChannelMoments
from umcompress.extend.pass_base import Pass
from umcompress.extend.users_code import call
from umcompress.graph.model_graph import ModelFamily, ModelGraph, trace_model
from umcompress.models.streamed import block_paths, large_layers

# An interpreter with torch and transformers, before any weight.
BASE = 500_000_000
# A pass scores weights in float64, next to a temporary of the same size.
SCORING = 16
# A pass that reads second moments solves with them in float64, next to copies of the consumer: so many.
CONSUMERS = 4


def predicted(model: nn.Module, family: ModelFamily, steps: Iterable[tuple[Pass, Calibration, float]]) -> Memory:
    """Peak bytes of resident memory on the CPU; activations of calibration and evaluation come on top.

    steps: each with the data that it measures on, and the share of a feed-forward's channels that it keeps.

    In memory: the model, the unpruned one that it is timed against, statistics and what is solved with them, and the
    refitted weights of all steps, which out of core stay on disk. Out of core: some pieces of a tensor, statistics,
    and one tensor while it is scored or solved for, or the largest block with what may be joined for it, the largest
    embedding or head, and what else lies outside of the blocks, all of which are there when the result is compared.
    """
    graph = trace_model(model, family)
    needs = [(list(call(one, "needs")), calibration.memory * 1e9, share) for one, calibration, share in steps]
    statistics = max((_held(graph, of_step, memory) for of_step, memory, _ in needs), default=0)
    refitted = [
        _refitted(graph, need, share)
        for of_step, _, share in needs for need in of_step if isinstance(need, ChannelMoments)
    ]  # fmt: skip
    solved, tensors = max((part[0] for part in refitted), default=0), sum(part[1] for part in refitted)
    blocks, layers = block_paths(model, family), large_layers(model, family)
    of, outside = dict.fromkeys((*blocks, *layers), 0), 0
    for name, parameter in model.named_parameters():
        path = next((path for path in of if name.startswith(f"{path}.")), None)
        count = parameter.numel() * parameter.element_size()
        if path is None:
            outside += count
        else:
            of[path] += count
    inner = [p for path in blocks for p in model.get_submodule(path).parameters()]
    scored = max((p.numel() * (p.element_size() + SCORING) for p in inner if p.ndim < 3), default=0)
    # Stacked experts are scored by nobody, but where they are cut up on disk one stack at a time may be joined.
    stack = max((p.numel() * p.element_size() for p in inner if p.ndim > 2), default=0)
    one_of_each = sum(max((of[path] for path in paths), default=0) for paths in (blocks, layers))
    # What is written is run once, whether or not anything was measured.
    running = outside + one_of_each + stack
    streamed = BASE + 4 * PIECE + max(scored, running, solved)
    whole = BASE + 2 * (outside + sum(of.values())) + solved
    return Memory(in_memory=whole + statistics + tensors, out_of_core=streamed + statistics)


def _held(graph: ModelGraph, needs: Sequence[Declaration], memory: float) -> int:
    """Bytes of the largest group of sites that is measured at once; other statistics are small beside these."""
    of = sizes(graph, [need for need in needs if isinstance(need, Heavy)])
    return max((sum(of[key] for key in group) for group in groups(of, memory)), default=0)


def _refitted(graph: ModelGraph, need: ChannelMoments, share: float) -> tuple[int, int]:
    """Bytes in use while one site is solved for, and of all consumers, as a pass hands them back.

    Solving takes the second moments of all channels, a system of those that stay, and its factor.
    """
    sites = graph.feed_forwards(**need.scope.query())
    consumers = [graph.model.get_parameter(f"{site.consumer}.weight") for site in sites]
    squares = [site.width**2 + 2 * round(share * site.width) ** 2 for site in sites]
    solving = [8 * (square + CONSUMERS * weight.numel()) for square, weight in zip(squares, consumers, strict=True)]
    return max(solving, default=0), sum(weight.numel() * weight.element_size() for weight in consumers)
