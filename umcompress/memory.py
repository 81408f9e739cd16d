"""How much memory a recipe will take, from shapes alone: with the model in memory, and out of core."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from umcompress.checkpoint.parts import PIECE
from umcompress.extend import ChannelMoments, ChannelSamples, Pass
from umcompress.graph.model_graph import ModelFamily, ModelGraph, trace_model
from umcompress.streamed import block_paths
from umcompress.views import Memory

# An interpreter with torch and transformers, before any weight.
BASE = 500_000_000
# A pass scores weights in float64, next to a temporary of the same size.
SCORING = 16


def predicted(model: nn.Module, family: ModelFamily, passes: Iterable[Pass]) -> Memory:
    """Peak bytes of resident memory on the CPU; activations of calibration and evaluation come on top.

    In memory: the model, the unpruned one that it is timed against, and statistics. Out of core: some pieces of a
    tensor, one tensor while it is scored; where something is measured also statistics, what lies outside of the
    blocks, and the largest block.
    """
    graph = trace_model(model, family)
    needs = [list(one.needs()) for one in passes]
    statistics = max((sum(_held(graph, need) for need in of_step) for of_step in needs), default=0)
    sizes, outside = dict.fromkeys(block_paths(model, family), 0), 0
    for name, parameter in model.named_parameters():
        path = next((path for path in sizes if name.startswith(f"{path}.")), None)
        count = parameter.numel() * parameter.element_size()
        if path is None:
            outside += count
        else:
            sizes[path] += count
    inner = [p for path in sizes for p in model.get_submodule(path).parameters()]
    scored = max((p.numel() * (p.element_size() + SCORING) for p in inner if p.ndim < 3), default=0)
    # Stacked experts are scored by nobody, but where they are cut up on disk one stack at a time may be joined.
    scored = max(scored, max((p.numel() * p.element_size() for p in inner if p.ndim > 2), default=0))
    streamed = BASE + 4 * PIECE + max(scored, outside + max(sizes.values(), default=0) if any(needs) else 0)
    whole = BASE + 2 * (outside + sum(sizes.values())) + statistics
    return Memory(in_memory=whole, out_of_core=streamed + statistics)


def _held(graph: ModelGraph, need: object) -> int:
    """Bytes of what one declaration keeps; sums over tokens that grow with the width only are small beside these."""
    if not isinstance(need, ChannelMoments | ChannelSamples):
        return 0
    total = 0
    for site in graph.feed_forwards(**need.scope.query()):
        if isinstance(need, ChannelMoments):
            total += 8 * site.width**2
        else:
            hidden = graph.model.get_parameter(f"{site.consumer}.weight").shape[0]
            total += 4 * need.tokens * (site.width + hidden)
    return total
