"""Keep the most important feed-forward channels; remove the others from producers and consumer.

Scores of channel j, with h its activation, w_j its row in each producer and W_:j its column in the consumer:
`activation` E|h_j| * ||W_:j||, `magnitude` ||W_:j|| * product over producers of ||w_j||, `random`; `reconstruction`,
see `_reconstruction`, for channels that a refit can make up for.
Repairs of what is lost: see `_repair`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from umcompress.extend import (
    ChannelActivation,
    ChannelMoments,
    Declaration,
    Declined,
    Edit,
    Evidence,
    KeepChannels,
    Plan,
    PlanError,
    Proposal,
    Ratio,
    SetTensors,
    SitePass,
    Statistics,
    TensorFile,
)
from umcompress.passes._common import (
    exact_ratio,
    kept_count,
    nothing_to_do,
    random_scores,
    removing_ratios,
    require_equal_counts,
    round_half_up,
    streams_together,
    summed,
    top_positions,
    unmatched,
)

if TYPE_CHECKING:
    from torch import Tensor

    from umcompress.extend import FeedForwardSite, ModelGraph


class ChannelPrune(SitePass):
    """Keep the feed-forward channels that contribute most, and repair what the others leave behind."""

    name: ClassVar[str] = "channel_prune"
    score: Literal["activation", "magnitude", "reconstruction", "random"] = Field(
        default="activation",
        description="measured E|h| times the column norm, weight norms, the output's error that is left after a "
        "least-squares refit (with repair: least_squares), or random",
    )
    keep_ratio: Ratio = Field(
        description="share of channels that stays, rounded half up to a multiple of `multiple_of`"
    )
    allocation: Literal["uniform", "global"] = Field(
        default="uniform",
        description="the same share in every layer, or one ranking over all (scores over their layer's mean)",
    )
    repair: Literal["none", "bias", "least_squares"] = Field(
        default="none",
        description="the removed channels' mean into the consumer's bias, or the consumer refitted on the "
        "calibration data",
    )
    multiple_of: PositiveInt = Field(
        default=1, description="widths stay multiples of this, at least one of them"
    )
    damping: PositiveFloat = Field(
        default=1e-2, description="of least_squares, as a share of the mean square activation"
    )
    uniform: bool = Field(
        default=False, description="refuse widths that differ by layer, which an ordinary configuration cannot say"
    )
    couple: Literal["channels", "width"] = Field(
        default="channels",
        description="with component: shared, where a block has two streams: the same channels in both, by the sum of "
        "their scores over each stream's mean, or each stream its own channels at one width",
    )
    seed: NonNegativeInt = Field(default=0, description="for score: random")

    @model_validator(mode="after")
    def _one_width(self) -> ChannelPrune:
        if self.uniform and self.allocation == "global":
            raise ValueError("allocation: global gives each layer a width of its own: set uniform: false")
        if self.score == "reconstruction" and self.repair != "least_squares":
            raise ValueError("score: reconstruction counts on a refit of what stays: set repair: least_squares")
        return self

    def needs(self) -> Sequence[Declaration]:
        if self.keep_ratio == 1:
            return []
        activation = ChannelActivation(self.scope())
        if self.repair == "least_squares":
            moments = ChannelMoments(self.scope())
            return [activation, moments] if self.score == "activation" else [moments]
        return [activation] if self.score == "activation" or self.repair == "bias" else []

    def plan(self, graph: ModelGraph, statistics: Statistics) -> Proposal:
        scope = self.resolve(graph)
        if self.keep_ratio == 1:
            return Proposal(Plan(pass_name=self.name))
        sites = graph.feed_forwards(**scope.query())
        declined = unmatched(
            graph, scope, "feed_forward", sites, "its inner channels cannot be followed through the graph"
        )
        pairs = list(streams_together(sites))
        self._check_pairs(pairs)
        scores: dict[str, list[float]] = {}
        if self.allocation == "global" and not statistics.dry:
            for pair in pairs:
                scores |= self._scored(graph, statistics, pair)
        counts = self._counts(pairs, scores)
        if self.uniform:
            every = graph.feed_forwards(component=scope.component, stack=scope.stack)
            widths = [counts.get(site.path, site.width) for site in every]
            require_equal_counts(self.name, "channels", widths, whole=len(sites) == len(every))
        edits: list[Edit] = []
        evidence: list[Evidence] = []
        tensors = TensorFile()
        for pair in pairs:
            if counts[pair[0].path] == pair[0].width:
                declined += [self._refusal(site) for site in pair]
                continue
            # Here and not for all sites beforehand: of their moments, few may fit into memory at a time.
            if not statistics.dry and pair[0].path not in scores:
                scores |= self._scored(graph, statistics, pair)
            for site in pair:
                own = scores.get(site.path, [])
                kept = top_positions(own or [0.0] * site.width, counts[site.path])
                edits.append(KeepChannels(site=site.path, keep=kept, bias=self.repair == "bias"))
                if not statistics.dry:
                    tensors.update(self._repaired(graph, statistics, site, kept))
                evidence.append(Evidence(site=site.path, component=site.component, scores=tuple(own), kept=kept))
        if not edits:
            widest = max((site.width for site in sites), default=0)
            do = removing_ratios(widest, "channels", self.multiple_of) if widest else "see umcompress inspect"
            raise nothing_to_do(self.name, f"keep_ratio {self.keep_ratio}", declined, do)
        if tensors:
            edits.append(SetTensors(names=tuple(sorted(tensors))))
        plan = Plan(
            pass_name=self.name, edits=tuple(edits), evidence=tuple(evidence), declined=tuple(declined)
        )
        return Proposal(plan, tensors)

    def _refusal(self, site: FeedForwardSite) -> Declined:
        unit = f" in multiples of {self.multiple_of}" if self.multiple_of > 1 else ""
        reason = f"keep_ratio {self.keep_ratio} of {site.width} channels{unit} keeps all of them"
        return Declined(site=site.path, component=site.component, reason=reason)

    def _scored(
        self, graph: ModelGraph, statistics: Statistics, pair: Sequence[FeedForwardSite]
    ) -> dict[str, list[float]]:
        """Site -> scores, of sites that are cut alike."""
        scores = {site.path: self._scores(graph, statistics, site) for site in pair}
        if self.couple == "channels":
            return dict.fromkeys(scores, summed(list(scores.values())))
        return scores

    def _scores(self, graph: ModelGraph, statistics: Statistics, site: FeedForwardSite) -> list[float]:
        """producers (I, H) each; consumer (H, I)."""
        if self.score == "random":
            return random_scores(self.seed, site.path, site.component, site.width)
        if self.score == "reconstruction":
            return self._removal_errors(graph, statistics, site)
        from umcompress.passes import _norms

        scores = _norms.column_norms(graph.consumer_weight(site))
        if self.score == "activation":
            scores = scores * statistics[ChannelActivation(self.scope())][site].mean_abs
        else:
            for weight in graph.producer_weights(site):
                scores = scores * _norms.row_norms(weight)
        return [float(score) for score in scores]

    def _removal_errors(self, graph: ModelGraph, statistics: Statistics, site: FeedForwardSite) -> list[float]:
        from umcompress.passes import _reconstruction

        moments = statistics[ChannelMoments(self.scope())][site]
        mean = moments.mean if graph.model.get_submodule(site.consumer).bias is not None else None
        weight = graph.consumer_weight(site)
        errors: list[float] = _reconstruction.removal_errors(weight, moments.second, mean, self.damping).tolist()
        return errors

    def _check_pairs(self, pairs: Sequence[Sequence[FeedForwardSite]]) -> None:
        """PlanError where the streams of a block have no channels in common that could be kept in both."""
        odd = next((pair for pair in pairs if len({site.width for site in pair}) > 1), None)
        if odd is not None:
            widths = ", ".join(f"{site.width} in {site.component}" for site in odd)
            raise PlanError(
                f"{self.name}: component shared", f"{odd[0].block} has feed-forwards of unequal width ({widths})",
                "cut one component at a time; streams are cut alike where they are alike",
            )  # fmt: skip

    def _counts(
        self, pairs: Sequence[Sequence[FeedForwardSite]], scores: Mapping[str, Sequence[float]]
    ) -> dict[str, int]:
        """How many channels stay at each site: the streams of a block get one number."""
        first = {pair[0].path: pair for pair in pairs}
        if self.allocation == "uniform" or not scores:
            counts = {pair[0].path: kept_count(pair[0].width, self.keep_ratio, self.multiple_of) for pair in pairs}
        else:
            ranked = {path: summed([sorted(scores[s.path]) for s in pair]) for path, pair in first.items()}
            counts = global_counts(ranked, self.keep_ratio, self.multiple_of)
        return {site.path: counts[path] for path, pair in first.items() for site in pair}

    def _repaired(
        self, graph: ModelGraph, statistics: Statistics, site: FeedForwardSite, kept: tuple[int, ...]
    ) -> dict[str, Tensor]:
        from umcompress.passes import _repair

        if self.repair == "none":
            return {}
        weight = graph.consumer_weight(site)
        has_bias = graph.model.get_submodule(site.consumer).bias is not None
        bias = graph.weight(f"{site.consumer}.bias") if has_bias else None
        if self.repair == "bias":
            mean = statistics[ChannelActivation(self.scope())][site].mean
            return {f"{site.consumer}.bias": _repair.mean_into_bias(weight, bias, mean, kept)}
        moments = statistics[ChannelMoments(self.scope())][site]
        weight, bias = _repair.least_squares(weight, bias, moments.second, moments.mean, kept, self.damping)
        if site.shared_consumer:
            weight = _beside_others(graph.weight(f"{site.consumer}.weight"), site, weight)
        changed = {f"{site.consumer}.weight": weight}
        return changed if bias is None else {**changed, f"{site.consumer}.bias": bias}


def _beside_others(whole: Tensor, site: FeedForwardSite, narrowed: Tensor) -> Tensor:
    """The weight of a linear that reads channels of this site, narrowed, between what else it reads.  (H, columns)"""
    before, after = whole[:, : site.consumer_start], whole[:, site.consumer_start + site.width :]
    import torch

    return torch.cat([before, narrowed, after], dim=1)


def global_counts(
    scores: Mapping[str, Sequence[float]], keep_ratio: float, multiple_of: int
) -> dict[str, int]:
    """Widths from one ranking over all layers.

    Every layer's scores are divided by their mean and cut, best first, into chunks of `multiple_of`.  The
    first chunk of each layer stays; further ones stay best first until the next would exceed the budget,
    keep_ratio of all channels rounded half up.
    """
    chunks: list[tuple[float, str, int]] = []
    counts: dict[str, int] = {}
    for path, raw in scores.items():
        mean = sum(raw) / len(raw)
        ranked = sorted((score / mean if mean > 0 else 0.0 for score in raw), reverse=True)
        counts[path] = min(multiple_of, len(raw))
        for start in range(multiple_of, len(ranked), multiple_of):
            chunk = ranked[start : start + multiple_of]
            chunks.append((sum(chunk) / len(chunk), path, len(chunk)))
    budget = round_half_up(exact_ratio(keep_ratio) * sum(map(len, scores.values()))) - sum(counts.values())
    # Sorting is stable, so chunks of one layer keep their order also where scores are equal.
    for _, path, size in sorted(chunks, key=lambda chunk: -chunk[0]):
        if size > budget:
            break
        counts[path] += size
        budget -= size
    return counts
