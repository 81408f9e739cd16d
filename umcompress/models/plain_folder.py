"""Folders that need no plans: a compressed model in the layout that its architecture, or another known one, has."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from umcompress.checkpoint.buffers import is_buffer
from umcompress.checkpoint.writer import TensorToWrite


@dataclass(frozen=True)
class Plain:
    """What to write instead of a model with its plans.

    weights: weight file -> name on disk -> tensor. texts: file -> content, in place of what the source's folder has
    under that name. dropped: files of the source's folder that do not belong to the result. exact: whether a
    reloaded model computes the same bits, and not only the same within rounding. sharded: whether large files may be
    cut up. note: what to tell of it. opens_here: whether umcompress reads the layout, too, and not only writes it.
    """

    weights: Mapping[str, Mapping[str, TensorToWrite]]
    texts: Mapping[str, str]
    dropped: frozenset[str] = frozenset()
    exact: bool = True
    sharded: bool = True
    note: str = ""
    loads_with: Literal["umcompress", "transformers", "diffusers"] = "umcompress"
    opens_here: bool = True

    def parameters(self, buffers: Collection[str] = ()) -> int:
        """Elements that the weight files will hold, those of `buffers` left out."""
        return sum(
            prod(source.shape)
            for tensors in self.weights.values()
            for name, source in tensors.items()
            if not is_buffer(name, buffers)
        )
