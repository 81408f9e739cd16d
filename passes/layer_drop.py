"""Remove whole blocks, or their attention or feed-forward branches; the residual stream bypasses them.

Score of a part: the mean over tokens of the cosine between the stream before it and after it, residual
included.  The nearer to 1, the less the part changes the stream, and the sooner it is dropped.  Blocks as in ShortGPT
(arXiv 2403.03853), single branches as in LLM-Drop (2406.15786), greedy re-measuring as in SLEB (2402.09025).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from umcompress.extend import (
    BlockSimilarity,
    BranchSimilarity,
    BranchSite,
    Component,
    Declaration,
    Declined,
    DropBlock,
    DropBranch,
    Edit,
    Evidence,
    Plan,
    PlanError,
    Proposal,
    Ratio,
    Scope,
    SitePass,
    Statistics,
)
from umcompress.passes._common import dropped_count, nothing_to_do

if TYPE_CHECKING:
    from umcompress.extend import ModelGraph


@dataclass(frozen=True)
class Unit:
    """A candidate for dropping: its branches, and the sites of its score, one a stream."""

    index: int
    name: str
    branches: tuple[BranchSite, ...]
    sites: tuple[Any, ...]


class LayerDrop(SitePass):
    """Drop the blocks, or the attention or feed-forward branches, that change the stream least."""

    name: ClassVar[str] = "layer_drop"
    unit: Literal["block", "attention", "feed_forward"] = Field(default="block", description="what to drop")
    score: Literal["cosine", "last", "first", "random"] = Field(
        default="cosine",
        description="what goes first: the most similar to the identity, the deepest, the shallowest, or random",
    )
    keep_ratio: Ratio | None = Field(
        default=None,
        description="share of the parts in `layers` that stays; the number dropped is rounded half up",
    )
    drop_count: PositiveInt | None = Field(
        default=None, description="how many parts to drop, instead of keep_ratio"
    )
    drop: tuple[NonNegativeInt, ...] | None = Field(
        default=None, description="the layers to drop from, instead of a score and a number"
    )
    greedy: bool = Field(default=False, description="measure again after each drop (cosine only)")
    seed: NonNegativeInt = Field(default=0, description="for score: random")
    part: str | None = Field(
        default=None,
        description="of blocks with several streams only the branches in this module, such as txt_mlp or ff_context",
    )

    @model_validator(mode="after")
    def _one_way_to_say_how_many(self) -> LayerDrop:
        given = [key for key in ("keep_ratio", "drop_count", "drop") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of keep_ratio, drop_count and drop; found {' and '.join(given) or 'none'}"
            )
        if self.drop is not None and (not self.drop or len(set(self.drop)) != len(self.drop)):
            raise ValueError("drop names each layer once, and at least one")
        if self.greedy and (self.score != "cosine" or self.drop is not None):
            raise ValueError("greedy measures again after each drop, so it needs score: cosine and a number")
        return self

    def on_layers(self, component: str, layers: Sequence[int]) -> LayerDrop:
        """These layers are named to be dropped: nothing is left to a score."""
        return self.model_copy(update={
            "component": component, "layers": "all", "drop": tuple(layers), "keep_ratio": None, "drop_count": None,
            "greedy": False, "score": "cosine",
        })  # fmt: skip

    def _similarity(self) -> Declaration:
        # Blocks that are gone shift the indices of later ones, so a greedy search measures all layers.
        scope = Scope(self.component, self.stack) if self.greedy else self.scope()
        return BlockSimilarity(scope) if self.unit == "block" else BranchSimilarity(self.unit, scope)

    def needs(self) -> Sequence[Declaration]:
        asked_to_drop = self.drop is None and self.keep_ratio != 1
        return [self._similarity()] if asked_to_drop and self.score == "cosine" else []

    def plan(self, graph: ModelGraph, statistics: Statistics) -> Proposal:
        scope = self.resolve(graph)
        component = str(scope.component)
        everywhere = self._units(graph, Scope(component, scope.stack))
        units = self._units(graph, scope)
        if self.keep_ratio == 1:
            return Proposal(Plan(pass_name=self.name))
        declined = self._ambiguous(graph, scope) + self._not_found(graph, scope)
        if not units and declined:
            do = "drop whole blocks (`unit: block`), or channels and heads"
            raise nothing_to_do(self.name, f"{self.unit} parts", declined, do)
        count = self._count(units)
        scores: dict[str, float] = {}
        if self.drop is not None:
            chosen = [unit for unit in units if unit.index in self.drop]
        elif self.greedy and not statistics.dry:
            chosen, scores = self._greedy(graph, statistics, component, units, everywhere, count)
        else:
            chosen, scores = self._by_score(statistics, component, units, count)
        gone = {unit.name for unit in chosen}
        evidence = tuple(
            Evidence(
                site=unit.name,
                component=component,
                scores=(scores[unit.name],) if unit.name in scores else (),
                note="dropped" if unit.name in gone else "stays",
            )
            for unit in units
        )
        edits = tuple(_edits(graph, chosen))
        return Proposal(Plan(pass_name=self.name, edits=edits, evidence=evidence, declined=tuple(declined)))

    def _wanted(self, site: BranchSite) -> bool:
        """Whether a branch is in the part that was asked for."""
        return self.part is None or site.part == self.part or site.part.startswith(f"{self.part}.")

    def _ambiguous(self, graph: ModelGraph, scope: Scope) -> list[Declined]:
        """Branches that an edit cannot tell apart: several of one kind and component in a block."""
        if self.unit == "block":
            return []
        sites = graph.branches(self.unit, **scope.query())
        twins = dict.fromkeys(site for site in sites if sites.count(site) > 1)
        reason = f"several {self.unit} branches of one component in a block cannot be told apart"
        return [Declined(site=site.block, component=site.component, reason=reason) for site in twins]

    def _not_found(self, graph: ModelGraph, scope: Scope) -> list[Declined]:
        """Blocks without such a branch of which not everything that they add was found."""
        if self.unit == "block":
            return []
        inside = {block.path for block in graph.blocks(**scope.query()) if not block.complete}
        inside -= {site.block for site in graph.branches(self.unit, **scope.query())}
        gaps = (gap for gap in graph.gaps() if gap.path in inside and gap.kind == "branches")
        reasons = {gap.path: gap.reason for gap in gaps if gap.component == scope.component}
        return [Declined(site=path, component=str(scope.component), reason=why) for path, why in reasons.items()]

    def _units(self, graph: ModelGraph, scope: Scope) -> list[Unit]:
        query = scope.query()
        if self.unit != "block":
            sites = graph.branches(self.unit, **query)
            together: dict[str, list[BranchSite]] = {}
            for site in (site for site in sites if sites.count(site) == 1 and self._wanted(site)):
                together.setdefault(site.path, []).append(site)
            return [Unit(same[0].index, name, tuple(same), tuple(same)) for name, same in together.items()]
        units = []
        for block in graph.blocks(**query):
            parts = [scope.component] if scope.component in block.components else sorted(block.components)
            own = tuple(branch for branch in block.branches if branch.component in parts)
            units.append(Unit(block.index, block.path, own, tuple((block, part) for part in parts)))
        return units

    def _count(self, units: list[Unit]) -> int:
        what = f"{self.unit} parts"
        if self.drop is not None:
            missing = sorted(set(self.drop) - {unit.index for unit in units})
            if missing:
                raise PlanError(
                    asked=f"{self.name}: drop {list(self.drop)}",
                    found=f"no {what} of this component in layers {missing}",
                    do=f"there are some in {sorted({unit.index for unit in units})}",
                )
        if not units:
            raise PlanError(f"{self.name}: {what}", "none in these layers", "widen `layers`, or see inspect")
        if self.drop is not None:
            count = sum(unit.index in self.drop for unit in units)
        elif self.drop_count is not None:
            count = self.drop_count
        else:
            count = dropped_count(len(units), self.keep_ratio or 1)
        if count == 0:
            raise PlanError(
                asked=f"{self.name}: keep_ratio {self.keep_ratio} of {len(units)} {what}",
                found="it rounds to dropping none",
                do=f"keep_ratio at most {1 - 0.5 / len(units):.4g}, or 1.0 to keep all on purpose",
            )
        if count >= len(units):
            raise PlanError(
                asked=f"{self.name}: drop {count} of {len(units)} {what}",
                found="nothing would stay",
                do="drop fewer",
            )
        return count

    def _by_score(
        self, statistics: Statistics, component: str, units: list[Unit], count: int
    ) -> tuple[list[Unit], dict[str, float]]:
        if self.score == "random":
            return random.Random(f"{self.seed}/{component}/{self.unit}").sample(units, count), {}
        if self.score == "first":
            return units[:count], {}
        if self.score == "last" or statistics.dry:
            return units[-count:], {}
        measured = statistics[self._similarity()]
        scores = {unit.name: _mean_cosine(measured, unit) for unit in units}
        return sorted(units, key=lambda unit: _first_to_go(unit, scores[unit.name]))[:count], scores

    def _greedy(
        self,
        graph: ModelGraph,
        statistics: Statistics,
        component: str,
        units: list[Unit],
        everywhere: list[Unit],
        count: int,
    ) -> tuple[list[Unit], dict[str, float]]:
        """Drop one, measure what is left, and so on.  A unit's score is the last one taken before it went."""
        allowed = {unit.name for unit in units}
        left, here = list(everywhere), list(everywhere)
        chosen: list[Unit] = []
        scores: dict[str, float] = {}
        now_measured = statistics
        while True:
            measured = now_measured[self._similarity()]
            # The edited copy has the surviving units in the same order, under new indices.
            for original, now in zip(left, here, strict=True):
                if original.name in allowed:
                    scores[original.name] = _mean_cosine(measured, now)
            candidates = [unit for unit in left if unit.name in allowed]
            best = min(candidates, key=lambda unit: _first_to_go(unit, scores[unit.name]))
            chosen.append(best)
            if len(chosen) == count:
                return chosen, scores
            left.remove(best)
            # Every round starts from the original model: that is what paths in edits mean.
            edited, now_measured = statistics.remeasure(_edits(graph, chosen))
            here = self._units(edited, Scope(component, self.stack))


def _drop(site: BranchSite) -> DropBranch:
    component = cast(Component, site.component)
    return DropBranch(block=site.block, branch=site.kind, component=component, part=site.part)


def _mean_cosine(measured: Mapping[Any, Any], unit: Unit) -> float:
    """The score of a part: of several streams, their mean, each stream counting alike whatever its tokens."""
    cosines = [float(measured[site].cosine) for site in unit.sites]
    return sum(cosines) / len(cosines)


def _first_to_go(unit: Unit, cosine: float) -> tuple[float, int]:
    """Most similar first; of equals the deeper."""
    return -cosine, -unit.index


def _edits(graph: ModelGraph, chosen: Sequence[Unit]) -> list[Edit]:
    """One DropBlock where a block goes with all that it adds, else a DropBranch for each branch; in depth order."""
    gone = {branch for unit in chosen for branch in unit.branches}
    asked = {unit.name for unit in chosen}
    edits: list[Edit] = []
    for block in graph.blocks(stack="all"):
        going = [branch for branch in block.branches if branch in gone]
        # A block may add more than was found in it: that goes only where the block itself was asked for.
        if len(going) == len(block.branches) and (block.path in asked or (going and block.complete)):
            edits.append(DropBlock(block=block.path))
        else:
            edits += [_drop(site) for site in going]
    return edits
