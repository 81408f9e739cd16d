"""Predict the memory that a recipe needs from shapes alone: with the model in memory, and out of core."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

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


def predicted(
    model: nn.Module, family: ModelFamily, steps: Iterable[tuple[Pass, Calibration, float]],
    graph: ModelGraph | None = None, stored: Mapping[str, int] | None = None,
) -> Memory:  # fmt: skip
    """Peak bytes of resident memory on the CPU; activations of calibration and evaluation come on top.

    steps: each with the data that it measures on, and the share of a feed-forward's channels that it keeps.
    graph: the model traced, where it is. stored: bytes of an element of each parameter on disk, where that is known.

    In memory: the model, the unpruned one that it is timed against, statistics and what is solved with them, and the
    refitted weights of all steps, which out of core stay on disk. Out of core: some pieces of a tensor, statistics,
    and one tensor while it is scored or solved for, or the largest block with what may be joined for it, the largest
    embedding or head, and what else lies outside of the blocks, all of which are there when the result is compared.
    """
    graph = trace_model(model, family) if graph is None else graph
    needs = [(list(call(one, "needs")), calibration.memory * 1e9, share) for one, calibration, share in steps]
    statistics = max((_held(graph, of_step, memory) for of_step, memory, _ in needs), default=0)
    refitted = [
        _refitted(graph, need, share)
        for of_step, _, share in needs for need in of_step if isinstance(need, ChannelMoments)
    ]  # fmt: skip
    solved, tensors = max((part[0] for part in refitted), default=0), sum(part[1] for part in refitted)
    total, _ = _sizes(model, family, {})
    _, largest = _sizes(model, family, stored or {})
    streamed = BASE + 4 * PIECE + max(largest, solved)
    whole = BASE + 2 * total + solved
    return Memory(in_memory=whole + statistics + tensors, out_of_core=streamed + statistics)


def _sizes(model: nn.Module, family: ModelFamily, stored: Mapping[str, int]) -> tuple[int, int]:
    """Bytes of the model, and the most that is in memory of it where it is not there as a whole."""
    blocks, layers = block_paths(model, family), large_layers(model, family, stored)
    of, outside = dict.fromkeys((*blocks, *layers), 0), 0
    scored = stack = 0
    for name, parameter in model.named_parameters():
        width = stored.get(name, parameter.element_size())
        count, path = parameter.numel() * width, next((path for path in of if name.startswith(f"{path}.")), None)
        if path is None:
            outside += count
            continue
        of[path] += count
        if path not in layers and parameter.ndim < 3:
            scored = max(scored, parameter.numel() * (width + SCORING))
        elif path not in layers:
            # Stacked experts are scored by nobody, but where they are cut up on disk one stack may be joined.
            stack = max(stack, count)
    one_of_each = sum(max((of[path] for path in paths), default=0) for paths in (blocks, layers))
    # What is written is run once, whether or not anything was measured.
    return outside + sum(of.values()), max(scored, outside + one_of_each + stack)


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
