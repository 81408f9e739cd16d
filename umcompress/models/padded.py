"""A compressed model filled up with zeros to one width, for readers that know one number only.

Channels of zeros add nothing, and neither does a branch of zeros: the outputs stay, and so do memory and work of the
widest layer.  It is for those who must load the result today in what cannot read it as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from umcompress.checkpoint.parts import FileRange, PartialTensor, Region, cut_out, sides
from umcompress.checkpoint.writer import TensorToWrite, in_memory, in_parts
from umcompress.graph.model_graph import ModelFamily, trace_model

NOTE = "filled up with zeros to {width} channels in every layer: it loads as a plain model, and saves no memory"


def padded_weights(
    model: nn.Module, built: nn.Module, family: ModelFamily, given: Mapping[str, TensorToWrite] | None
) -> Mapping[str, TensorToWrite] | str:
    """The tensors of `built`, a skeleton with room for all of `model`; or why they cannot be made.

    given: where the tensors of a skeleton come from; a live model has its own.
    """
    values = given if given is not None else {name: in_memory(t) for name, t in model.state_dict().items()}
    graph = trace_model(model, family)
    sites = graph.feed_forwards(stack="all")
    fused = {path for site in sites for path in site.producers if site.producers.count(path) > 1}
    cut = {path for site in sites for path in (*site.producers, site.consumer)} - fused
    wanted = built.state_dict(keep_vars=True)
    if extra := sorted(values.keys() - wanted.keys()):
        return f"the layout has no place for {extra[0]}" + (f" and {len(extra) - 1} more" if len(extra) > 1 else "")
    odd = [
        name for name, source in values.items()
        if source.shape != tuple(wanted[name].shape) and name.rpartition(".")[0] not in cut
    ]  # fmt: skip
    if odd:
        return f"only channels of feed-forwards and dropped branches can be filled up with zeros, not {odd[0]}"
    return {
        name: _grown(values[name], tuple(tensor.shape)) if name in values else _idle(built, name, tensor)
        for name, tensor in wanted.items()
    }


def _grown(source: TensorToWrite, shape: tuple[int, ...]) -> TensorToWrite:
    """The tensor with zeros after its last rows and columns."""
    inner = source.parts or _Held(source.make())
    return in_parts(inner if source.shape == shape else _Filled(shape, source.dtype, 0, inner))


def _idle(built: nn.Module, name: str, tensor: Tensor) -> TensorToWrite:
    """A tensor of a branch that adds nothing: zeros, but for norms, which keep the scale of nothing."""
    path, _, leaf = name.rpartition(".")
    norm = leaf == "weight" and "norm" in type(built.get_submodule(path)).__name__.lower()
    return in_parts(_Filled(tuple(tensor.shape), tensor.dtype, int(norm)))


@dataclass(frozen=True)
class _Filled:
    """A tensor, and one value in all places after its last rows and columns."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    value: int
    inner: PartialTensor | None = None

    def part(self, region: Region) -> Tensor:
        found = torch.full(sides(region), self.value, dtype=self.dtype)
        inside = self._inside(region)
        if self.inner is not None and all(inside):
            found[tuple(slice(len(span)) for span in inside)] = self.inner.part(inside)
        return found

    def cost(self, region: Region) -> int:
        inside = self._inside(region)
        return self.inner.cost(inside) if self.inner is not None and all(inside) else 0

    def stored(self, region: Region) -> FileRange | None:
        return None

    def _inside(self, region: Region) -> Region:
        """What of a region lies in the tensor that is filled up."""
        if self.inner is None:
            return region
        ends = (min(span.stop, side) for span, side in zip(region, self.inner.shape, strict=True))
        return tuple(range(span.start, max(span.start, end)) for span, end in zip(region, ends, strict=True))


@dataclass(frozen=True)
class _Held:
    """A tensor that is in memory, as one that can be read in parts."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def part(self, region: Region) -> Tensor:
        return cut_out(self.tensor, region)

    def cost(self, region: Region) -> int:
        return 0

    def stored(self, region: Region) -> FileRange | None:
        return None


def widest(model: nn.Module, family: ModelFamily, stack: str | None = None) -> int:
    """The width that all feed-forwards of a stack are filled up to; 0 where none is left."""
    return max(_widths(model, family, stack), default=0)


def _widths(model: nn.Module, family: ModelFamily, stack: str | None) -> Iterator[int]:
    for site in trace_model(model, family).feed_forwards(stack=stack):
        yield site.width
