"""The frozen result of a calibration sweep, keyed by declaration and then by site."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from umcompress.calibrate.declare import Declaration
from umcompress.errors import PlanError

if TYPE_CHECKING:
    from torch import Tensor

    from umcompress.documents.plan import Edit
    from umcompress.graph.model_graph import ModelGraph

Key: TypeAlias = tuple[str, str]
Rework: TypeAlias = "Callable[[Sequence[Edit]], tuple[ModelGraph, Callable[[], None]]]"


@dataclass(frozen=True)
class Similarity:
    """Mean cosine over the tokens that reached the site."""

    cosine: float
    tokens: int


@dataclass(frozen=True)
class Channels:
    """mean_abs, mean: (width,) float64."""

    mean_abs: Tensor
    mean: Tensor
    tokens: int


@dataclass(frozen=True)
class Moments:
    """second: (width, width) = sum h h' / tokens; mean: (width,); both float64."""

    second: Tensor
    mean: Tensor
    tokens: int


@dataclass(frozen=True)
class UpperTriangleMoments:
    """Moments as they are stored: tile i has the rows of `second` from i * size on, right of their diagonal.

    tiles: float64, (size, width), (size, width - size) and so on, the last one perhaps of fewer rows.
    """

    tiles: tuple[Tensor, ...]
    mean: Tensor
    tokens: int

    def whole(self) -> Moments:
        """The full symmetric matrix; a small one shares the memory of its only tile."""
        if len(self.tiles) == 1:
            return Moments(self.tiles[0], self.mean, self.tokens)
        width = len(self.mean)
        second = self.mean.new_empty(width, width)
        for tile in self.tiles:
            start = width - tile.shape[1]
            end = start + len(tile)
            second[start:end, start:] = tile
            second[end:, start:end] = tile[:, len(tile) :].T
        return Moments(second, self.mean, self.tokens)


@dataclass(frozen=True)
class Heads:
    """query_heads: (groups * heads per group,) in projection order; key_value_groups: (groups,); float64."""

    query_heads: Tensor
    key_value_groups: Tensor
    tokens: int


@dataclass(frozen=True)
class Samples:
    """inputs: (n, hidden) into the feed-forward; channels: (n, width) of the same tokens; as the model made them."""

    inputs: Tensor
    channels: Tensor
    tokens: int


@dataclass(frozen=True)
class Contributions:
    """With x1 = (x, 1) and N (E,) the norms of the experts' outputs: means of x1 x1', x1 N' and N^2; float64.

    second: (hidden + 1, hidden + 1); cross: (hidden + 1, E); square: (E,).
    """

    second: Tensor
    cross: Tensor
    square: Tensor
    tokens: int


@dataclass(frozen=True)
class Routed:
    """g: channels with those of inactive experts set to zero; r = W (h - g): what the output then lacks.

    second: (width, width) = mean g g'; mean: (width,) of g; cross: (hidden, width) = mean r g'; lost: (hidden,)
    = mean r; lost_square, output_square: mean ||r||^2, ||W h||^2; load: (E,) share of the tokens at each expert.
    """

    second: Tensor
    mean: Tensor
    cross: Tensor
    lost: Tensor
    lost_square: float
    output_square: float
    load: Tensor
    tokens: int


def site_key(site: Any, component: str | None = None) -> Key:
    """The name under which a site's values are kept.  A block site also needs the component."""
    if hasattr(site, "branches"):
        if component is None:
            raise ValueError(f"{site.path}: index a block's values with (block, component)")
        return site.path, component
    path = site.path if hasattr(site, "path") else f"{site.block}.{site.kind}"
    return path, site.component


class Measured(Mapping[Any, Any]):
    """The values of one declaration.  Index with a site, or with (block, component)."""

    def __init__(self, declaration: Declaration, values: Mapping[Key, Any], task: str) -> None:
        self._declaration, self._values, self._task = declaration, MappingProxyType(values), task

    def __getitem__(self, site: Any) -> Any:
        key = site_key(*site) if isinstance(site, tuple) else site_key(site)
        what = type(self._declaration).__name__
        if key not in self._values:
            raise KeyError(f"{what} was not measured at {key[0]} ({key[1]}): outside the declared scope")
        value = self._values[key]
        if value.tokens == 0:
            other = {"understanding": "generation", "generation": "understanding"}.get(self._task)
            again = f"on {other}, where the model does it (calibration: {{task: {other}}}), or " if other else ""
            raise PlanError(
                asked=f"{what} at {key[0]} ({key[1]})",
                found="no token passes there " + (f"while the task is {self._task}" if other else "in either task"),
                do=f"calibrate {again}on data that pass there: a vision tower needs pictures",
            )
        if not _finite(value):
            raise PlanError(
                asked=f"{what} at {key[0]} ({key[1]})",
                found="values that are not finite: what reaches it on the calibration data is NaN or infinite",
                do="look for such values in the weights of the model, there or before; in bfloat16, compute in "
                "float32 (dtype: float32)",
            )
        return value

    def __iter__(self) -> Iterator[Key]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _finite(value: Any) -> bool:
    """Whether all measured values are finite.  Tests the minimum and maximum, which need no further memory."""
    parts = vars(value).values()
    tensors = [part for part in parts if hasattr(part, "aminmax") and part.numel()]
    ends = [float(end) for tensor in tensors for end in tensor.aminmax()]
    return all(math.isfinite(end) for end in (*ends, *(part for part in parts if isinstance(part, float))))


class UndeclaredStatistic(KeyError):
    """A pass read a statistic that its needs() does not list."""


@dataclass(frozen=True)
class Statistics:
    """The statistics of one step, by declaration.

    `dry` is true when only shapes are known (a dry run on a skeleton): nothing may be read, and a pass
    then plans the counts, with whichever members it likes.
    """

    values: Mapping[Declaration, Measured] = field(default_factory=dict)
    task: str = "understanding"
    dry: bool = False
    again: Callable[[Sequence[Edit]], tuple[ModelGraph, Statistics]] | None = None
    more: Callable[[Sequence[Declaration]], Statistics] | None = None

    def __getitem__(self, declaration: Declaration) -> Measured:
        if declaration not in self.values:
            have = ", ".join(map(repr, self.values)) or "nothing"
            raise UndeclaredStatistic(f"{declaration!r} was not declared by needs(); declared: {have}")
        return self.values[declaration]

    def remeasure(self, edits: Sequence[Edit]) -> tuple[ModelGraph, Statistics]:
        """Measure the same declarations on a copy of the model with `edits` applied.  The model itself is unchanged.

        Paths in `edits` mean the model before any of them; sites of the returned graph are renumbered.
        """
        if self.again is None:
            raise PlanError(
                asked="measuring again on an edited copy of the model",
                found="this run cannot edit a copy (a dry run, or a bare call of plan)",
                do="leave greedy out, or run the recipe with `umcompress apply`",
            )
        return self.again(edits)

    def measure(self, declarations: Sequence[Declaration]) -> Statistics:
        """Measure further declarations over the same model and data, in one more sweep where nothing was kept of it.

        Sites whose values are large are best measured a few at a time: what is returned is held nowhere else.
        """
        if self.more is None:
            raise PlanError(
                asked="measuring more on the calibration data",
                found="this run has none (a dry run, or a pass that declares no need)",
                do="run the recipe with `umcompress apply`",
            )
        return self.more(declarations)
