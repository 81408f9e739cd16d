"""Similarities of blocks as calibration measures them, against hooks on the blocks that know no graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from umcompress.calibrate.collect import collect
from umcompress.calibrate.declare import BlockSimilarity, Scope
from umcompress.errors import PlanError
from umcompress.graph.model_graph import ModelGraph

NEAR = 1e-6


def otherwise(graph: ModelGraph, model: nn.Module, run: Callable[[], object]) -> list[str]:
    """A line for each block whose score differs from the cosine of what it is given and what it hands on.

    Blocks that the hooks cannot tell (what goes in has another shape than what comes out) are left aside.
    """
    found = []
    for stack in graph.stacks:
        blocks = list(graph.blocks(stack=stack))
        right = _by_hooks([model.get_submodule(block.path) for block in blocks], run)
        for component in sorted({component for block in blocks for component in block.components}):
            need = BlockSimilarity(Scope(component, stack=stack))
            measured = collect(graph, [need], lambda: void(run()))[need]
            for block, cosine in zip(blocks, right, strict=True):
                try:
                    ours = measured[block, component].cosine
                except PlanError:  # a tower that no token of these inputs passes is not scored
                    continue
                if cosine is not None and abs(ours - cosine) > NEAR:
                    found.append(f"{block.path} scored {ours:.6f}, by hooks {cosine:.6f}")
    return found


def void(_: object) -> None:
    """What a run gives is not looked at."""


def _by_hooks(blocks: list[nn.Module], run: Callable[[], object]) -> list[float | None]:
    """Mean cosine over tokens, block by block; None where input and output are not of one shape."""
    given: dict[int, Tensor] = {}
    cosines: dict[int, list[Tensor]] = {}
    odd: set[int] = set()
    hooks = []
    for place, block in enumerate(blocks):

        def enter(_: nn.Module, args: Any, kwargs: Any, place: int = place) -> None:
            found = _stream((*args, *(kwargs[key] for key in ("hidden_states", "x", "hidden") if key in kwargs)))
            if found is not None:
                given[place] = found.clone()

        def leave(_: nn.Module, __: Any, output: Any, place: int = place) -> None:
            before, after = given.get(place), _stream(output if isinstance(output, tuple | list) else (output,))
            if before is None or after is None or before.shape != after.shape:
                odd.add(place)
                return
            cosine = torch.nn.functional.cosine_similarity(before.double(), after.double(), dim=-1)
            cosines.setdefault(place, []).append(cosine.flatten())

        hooks += [block.register_forward_pre_hook(enter, with_kwargs=True), block.register_forward_hook(leave)]
    run()
    for hook in hooks:
        hook.remove()
    told = {place: float(torch.cat(parts).mean()) for place, parts in cosines.items() if place not in odd}
    return [told.get(place) for place in range(len(blocks))]


def _stream(values: Any) -> Tensor | None:
    """The first tensor that can be a stream: (B, T, H)."""
    return next((v for v in values if isinstance(v, Tensor) and v.is_floating_point() and v.ndim >= 3), None)
