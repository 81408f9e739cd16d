"""Keep the attention heads that contribute most to the residual stream; remove the others from the projections.

A key-value group goes with all its query heads; single query heads go in equal number from every group.
Scores: `contribution` is the mean over tokens of ||W_o[:, unit] x_unit||, the norm of what the unit adds to
the output projection (of a group: of its heads' sum).  `magnitude` is ||W_v[group]|| * ||W_o[:, unit]||
(Frobenius), an upper bound of it that needs no data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from pydantic import Field, NonNegativeInt

from umcompress.extend import (
    Component,
    Declaration,
    Declined,
    Edit,
    Evidence,
    HeadContribution,
    KeepHeads,
    Plan,
    Proposal,
    Ratio,
    SitePass,
    Statistics,
)
from umcompress.passes._common import (
    kept_count,
    nothing_to_do,
    random_scores,
    removing_ratios,
    require_equal_counts,
    top_positions,
    unmatched,
)

if TYPE_CHECKING:
    from umcompress.extend import AttentionSite, ModelGraph


class HeadPrune(SitePass):
    """Keep the heads that contribute most to the output projection."""

    name: ClassVar[str] = "head_prune"
    unit: Literal["key_value_group", "query_head"] = Field(
        default="key_value_group", description="whole groups, or query heads: equally many in every group"
    )
    score: Literal["contribution", "magnitude", "random"] = Field(
        default="contribution", description="measured output norm, weight norms, or random"
    )
    keep_ratio: Ratio = Field(
        description="share of units that stays in every layer; rounded half up, at least one"
    )
    uniform: bool = Field(
        default=False, description="refuse counts that differ by layer, which an ordinary configuration cannot say"
    )
    seed: NonNegativeInt = Field(default=0, description="for score: random")

    def needs(self) -> Sequence[Declaration]:
        measured = self.score == "contribution" and self.keep_ratio != 1
        return [HeadContribution(self.scope())] if measured else []

    def plan(self, graph: ModelGraph, statistics: Statistics) -> Proposal:
        scope = self.resolve(graph)
        if self.keep_ratio == 1:
            return Proposal(Plan(pass_name=self.name))
        sites = graph.attentions(**scope.query())
        if self.uniform:
            inside = {site.path for site in sites if not self._refusal(site)}
            every = graph.attentions(component=scope.component, stack=scope.stack)
            sizes = [self._units(site, site.path in inside) for site in every]
            require_equal_counts(self.name, f"{self.unit}s", sizes, whole=len(sites) == len(every))
        declined = unmatched(graph, scope, "attention", sites, "its heads are not known to the engine")
        edits: list[Edit] = []
        evidence: list[Evidence] = []
        for site in sites:
            refusal = self._refusal(site)
            if refusal:
                declined.append(Declined(site=site.path, component=site.component, reason=refusal))
                continue
            scores = [] if statistics.dry else self._scores(graph, statistics, site)
            kept = self._kept(site, scores)
            groups, heads = (kept, None) if self.unit == "key_value_group" else (None, kept)
            edits.append(
                KeepHeads(
                    site=site.path,
                    component=cast(Component, site.component),
                    key_value_groups=groups,
                    query_heads=heads,
                )
            )
            evidence.append(
                Evidence(
                    site=site.path, component=site.component, scores=tuple(scores), kept=kept, note=self.unit
                )
            )
        if not edits:
            asked = f"keep_ratio {self.keep_ratio} of {self.unit}s"
            raise nothing_to_do(self.name, asked, declined, self._legal(sites))
        plan = Plan(
            pass_name=self.name, edits=tuple(edits), evidence=tuple(evidence), declined=tuple(declined)
        )
        return Proposal(plan)

    def _units(self, site: AttentionSite, cut: bool) -> int:
        """Units of a site afterwards; query heads are counted in each group."""
        total = site.key_value_groups if self.unit == "key_value_group" else site.query_heads_per_group
        return self._count(site, total) if cut else total

    def _count(self, site: AttentionSite, total: int) -> int:
        """How many of a site's units stay."""
        return kept_count(total, self.keep_ratio, site.multiple_of if self.unit == "key_value_group" else 1)

    def _legal(self, sites: Sequence[AttentionSite]) -> str:
        """What would remove something, at the site that has most units."""
        if self.unit == "key_value_group":
            units = [(site.key_value_groups, site.multiple_of) for site in sites]
            most, step = max(units, default=(1, 1))
            if most <= step > 1:
                return f"{most} key_value_groups, in steps of {step}, all stay; layer_drop takes the whole branch"
            return removing_ratios(most, "key_value_groups", step)
        each = max((site.query_heads_per_group for site in sites), default=1)
        return removing_ratios(each, "query_heads in each group") if each > 1 else "use unit: key_value_group"

    def _refusal(self, site: AttentionSite) -> str:
        groups, heads = site.key_value_groups, site.query_heads_per_group
        if self.unit == "query_head" and heads == 1:
            return "one query head in each key-value group: use unit: key_value_group"
        total = groups if self.unit == "key_value_group" else heads
        if self._count(site, total) == total:
            where = "" if self.unit == "key_value_group" else " in each group"
            steps = f", in steps of {site.multiple_of}" if site.multiple_of > 1 and not where else ""
            return f"keep_ratio {self.keep_ratio} of {total} {self.unit}s{where}{steps} rounds to all of them"
        return ""

    def _kept(self, site: AttentionSite, scores: Sequence[float]) -> tuple[int, ...]:
        groups, heads = site.key_value_groups, site.query_heads_per_group
        if self.unit == "key_value_group":
            return top_positions(scores or [0.0] * groups, self._count(site, groups))
        scores = scores or [0.0] * (groups * heads)
        count = kept_count(heads, self.keep_ratio)
        return tuple(
            group * heads + position
            for group in range(groups)
            for position in top_positions(scores[group * heads : (group + 1) * heads], count)
        )

    def _scores(self, graph: ModelGraph, statistics: Statistics, site: AttentionSite) -> list[float]:
        by_group = self.unit == "key_value_group"
        total = site.key_value_groups * (1 if by_group else site.query_heads_per_group)
        if self.score == "random":
            return random_scores(self.seed, site.path, site.component, total)
        if self.score == "magnitude":
            return self._magnitude(graph, site)
        measured = statistics[HeadContribution(self.scope())][site]
        scores = measured.key_value_groups if by_group else measured.query_heads
        return [float(score) for score in scores]

    def _magnitude(self, graph: ModelGraph, site: AttentionSite) -> list[float]:
        """value (g*d, H); output (H, g*m*d): columns lie group-major, as the query heads do.

        Streams with the same heads have a weight each: their squares add up.
        """
        groups, heads, width = site.key_value_groups, site.query_heads_per_group, site.head_dim
        values = [weight.double().reshape(groups, -1).square().sum(dim=1) for weight in graph.value_weights(site)]
        outputs = [weight.double().reshape(-1, groups, heads, width) for weight in graph.output_weights(site)]
        value = sum(values[1:], values[0]).sqrt()
        squares = sum((o.square().sum(dim=(0, 3)) for o in outputs[1:]), outputs[0].square().sum(dim=(0, 3)))
        if self.unit == "key_value_group":
            return [float(score) for score in value * squares.sum(dim=1).sqrt()]
        return [float(score) for score in (value[:, None] * squares.sqrt()).flatten()]
