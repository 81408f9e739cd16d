"""Split feed-forwards into experts, of which each token uses a few.

Partitions of the channels: `importance` deals them out by E|h_j| * ||W_:j||, strongest first, in serpentine order
(BAGEL-MoE, arXiv 2512.02351); `contribution` clusters the channels that contribute |h_j| * ||W_:j|| at the same
tokens; `random`.  Routers: `zero` chooses alike for all tokens; `ridge` predicts each expert's contribution
||W_e h_e|| from what enters (D2DMoE, 2310.04361, in closed form).  The repair refits the consumer for the channels
that the router leaves on.  H hidden, I channels, E experts of m.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from umcompress.extend import (
    ChannelActivation,
    ChannelSamples,
    ContributionMoments,
    Declaration,
    Declined,
    Edit,
    Evidence,
    FeedForwardSite,
    Plan,
    PlanError,
    Proposal,
    RoutedMoments,
    Routing,
    Scope,
    SetTensors,
    SitePass,
    SplitExperts,
    Statistics,
)
from umcompress.passes._common import exact_ratio, nothing_to_do, round_half_up, unmatched

if TYPE_CHECKING:
    from torch import Tensor

    from umcompress.extend import ModelGraph, SplitPlace


@dataclass
class Split:
    """The split of one feed-forward: where its experts go, their channels, and the new tensors."""

    site: FeedForwardSite
    place: SplitPlace
    shared: tuple[int, ...]
    experts: tuple[tuple[int, ...], ...]
    routing: Routing
    tensors: dict[str, Tensor]
    notes: list[str]
    load: tuple[float, ...] = ()


class MoeSplit(SitePass):
    """Split feed-forwards into experts and choose a few of them for each token.

    `shared` of the channels are always on, and `active` of the `experts` that the others are split into: each
    token uses shared + (1 - shared) * active / experts of the channels.
    """

    name: ClassVar[str] = "moe_split"
    layers: Annotated[str, *SitePass.model_fields["layers"].metadata] = Field(
        default="inner", description=SitePass.model_fields["layers"].description
    )
    experts: Annotated[int, Field(ge=2)] = Field(description="how many experts; must divide the routed channels")
    active: PositiveInt = Field(description="how many of the experts run for a token")
    shared: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the channels that is always on beside the experts, rounded so that the others divide",
    )
    partition: Literal["importance", "contribution", "random"] = Field(
        default="contribution",
        description="dealt by mean |h| times the column norm, clustered by the tokens they contribute at, or random",
    )
    router: Literal["zero", "ridge"] = Field(
        default="ridge",
        description="the same experts for all tokens until trained, or those predicted to contribute most",
    )
    repair: Literal["none", "least_squares"] = Field(
        default="least_squares", description="the consumer refitted for the channels that the router leaves on"
    )
    weighting: Literal["one_plus_logit", "softmax"] = Field(
        default="one_plus_logit",
        description="of the chosen experts: 1 + a trainable logit, or a softmax over them times their number, which "
        "Mixtral and Qwen3-MoE can express",
    )
    damping: PositiveFloat = Field(
        default=0.1, description="of ridge and least_squares, as a share of the mean square"
    )
    tokens: PositiveInt = Field(default=2048, description="how many tokens `contribution` clusters by")
    memory: PositiveFloat = Field(
        default=8.0,
        description="GB that sums over the calibration data may take; layers beyond that wait for another sweep",
    )
    seed: NonNegativeInt = Field(default=0, description="of the clustering's start and of partition: random")

    @model_validator(mode="after")
    def _active_exist(self) -> MoeSplit:
        if self.active > self.experts:
            raise ValueError(f"active {self.active} of {self.experts} experts: at most {self.experts} can run")
        return self

    def needs(self) -> Sequence[Declaration]:
        wanted: list[Declaration] = []
        if self.partition == "importance":
            wanted.append(ChannelActivation(self.scope()))
        if self.partition == "contribution" or self.router == "ridge" or self._repairs():
            wanted.append(self._samples())
        return wanted

    def _samples(self) -> ChannelSamples:
        return ChannelSamples(self.scope(), self.tokens, self.seed)

    def _repairs(self) -> bool:
        return self.repair == "least_squares" and self.active < self.experts

    def plan(self, graph: ModelGraph, statistics: Statistics) -> Proposal:
        scope = self.resolve(graph)
        sites, declined = self._sites(graph, scope)
        self._check_widths([site for site, _ in sites])
        splits = [self._dealt(graph, statistics, site, place) for site, place in sites]
        if not splits:
            hint = "widen `layers`, or see umcompress inspect"
            raise nothing_to_do(self.name, f"{self.experts} experts", declined, hint)
        if not statistics.dry:
            if self.router == "ridge":
                self._route(graph, statistics, splits)
            if self._repairs():
                self._repair(graph, statistics, splits)
        edits: list[Edit] = [self._edit(split) for split in splits]
        tensors = {name: value for split in splits for name, value in split.tensors.items()}
        if tensors:
            edits.append(SetTensors(names=tuple(sorted(tensors))))
        evidence = tuple(self._evidence(split) for split in splits)
        plan = Plan(pass_name=self.name, edits=tuple(edits), evidence=evidence, declined=tuple(declined))
        return Proposal(plan, tensors)

    def _sites(
        self, graph: ModelGraph, scope: Scope
    ) -> tuple[list[tuple[FeedForwardSite, SplitPlace]], list[Declined]]:
        found = graph.feed_forwards(**scope.query())
        split = graph.experts(**scope.query())
        why = "its inner channels cannot be followed through the graph"
        declined = unmatched(graph, scope, "feed_forward", [*found, *split], why)
        declined += [Declined(site=s.path, component=s.component, reason="it is split into experts") for s in split]
        sites = []
        for site in found:
            place = graph.split_place(site)
            if isinstance(place, str):
                declined.append(Declined(site=site.path, component=site.component, reason=place))
            else:
                sites.append((site, place))
        return sites, declined

    # -- sizes ----------------------------------------------------------------------------------------------

    def _check_widths(self, sites: Sequence[FeedForwardSite]) -> None:
        for site in sites:
            if self.shared == 0 and site.width % self.experts:
                legal = divisors(math.gcd(*(each.width for each in sites)))
                raise PlanError(
                    asked=f"{self.name}: {self.experts} experts at {site.path}",
                    found=f"{site.width} channels do not divide into {self.experts} experts of one size",
                    do=f"experts: {' or '.join(map(str, legal))}; or let a share of the channels be `shared`",
                )
            if site.width <= self.experts and self.shared:
                raise PlanError(
                    asked=f"{self.name}: {self.experts} experts and shared channels at {site.path}",
                    found=f"there are {site.width} channels",
                    do=f"experts: at most {site.width - 1}",
                )

    def shared_count(self, width: int) -> int:
        """How many channels are always on: nearest to the share, at least one, the others a multiple of experts."""
        if self.shared == 0:
            return 0
        size = round_half_up((1 - exact_ratio(self.shared)) * width / self.experts)
        return width - self.experts * min(max(size, 1), (width - 1) // self.experts)

    def _dealt(self, graph: ModelGraph, statistics: Statistics, site: FeedForwardSite, place: SplitPlace) -> Split:
        shared_count = self.shared_count(site.width)
        size = (site.width - shared_count) // self.experts
        if statistics.dry:
            order = range(shared_count, site.width)
            shared = tuple(range(shared_count))
            experts = tuple(tuple(order[e * size : (e + 1) * size]) for e in range(self.experts))
        else:
            shared, experts = self._partition(graph, statistics, site, shared_count)
        at_work = shared_count + self.active * size
        beside = f" beside {shared_count} shared channels" if shared_count else ""
        note = f"{self.experts} experts of {size}, {self.active} active{beside}: {at_work} of {site.width} at work"
        return Split(site, place, shared, experts, Routing(experts, self.active), {}, [note])

    def _partition(
        self, graph: ModelGraph, statistics: Statistics, site: FeedForwardSite, shared_count: int
    ) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
        from umcompress.passes import _partition

        seed = f"{self.seed}/{site.component}/{site.path}"
        if self.partition == "random":
            return _partition.random_partition(site.width, self.experts, shared_count, seed)
        norms = graph.consumer_weight(site).double().norm(dim=0).cpu()
        if self.partition == "importance":
            importance = statistics[ChannelActivation(self.scope())][site].mean_abs * norms
            return _partition.importance_partition(importance.tolist(), self.experts, shared_count)
        profiles = statistics[self._samples()][site].channels.abs().float() * norms.float()
        return _partition.contribution_partition(profiles, self.experts, shared_count, seed)

    # -- routers and repair -----------------------------------------------------------------------------------

    def _route(self, graph: ModelGraph, statistics: Statistics, splits: Sequence[Split]) -> None:
        """Fit each split's router, and note how well it predicts the contributions."""
        from umcompress.passes import _router

        def held(split: Split) -> int:
            hidden, size = _hidden(graph, split.site), len(split.experts[0])
            return 8 * ((hidden + 1) ** 2 + split.site.width * min(size, hidden))

        for group in self._groups(splits, held):
            asked = ContributionMoments({split.site.path: split.routing for split in group})
            found = statistics.measure([asked])[asked]
            for split in group:
                moments = found[split.site]
                path, dtype = split.place.path, graph.weight(f"{split.site.producers[0]}.weight").dtype
                if self.weighting == "softmax":
                    weight, fitted = _router.ridge_logits(moments, self.damping)
                    weight, bias = weight.to(dtype), None
                    split.tensors[f"{path}.gate.weight"] = weight
                else:
                    exact_weight, exact_bias, fitted = _router.ridge(moments, self.damping)
                    weight, bias = exact_weight.to(dtype), exact_bias.to(dtype)
                    split.tensors |= {f"{path}.selector.weight": weight, f"{path}.selector.bias": bias}
                split.routing = Routing(split.experts, self.active, weight, bias)
                split.notes.append(f"router explains {fitted:.3f} of the variance of the contributions")

    def _repair(self, graph: ModelGraph, statistics: Statistics, splits: Sequence[Split]) -> None:
        """Refit each split's consumer, and note the error of its output before and after."""
        from umcompress.passes import _router

        def held(split: Split) -> int:
            return RoutedMoments.bytes_held(split.site.width, _hidden(graph, split.site))

        for group in self._groups(splits, held):
            asked = RoutedMoments({split.site.path: split.routing for split in group})
            found = statistics.measure([asked])[asked]
            for split in group:
                moments, consumer = found[split.site], split.site.consumer
                has_bias = graph.model.get_submodule(consumer).bias is not None
                bias = graph.weight(f"{consumer}.bias") if has_bias else None
                old = graph.consumer_weight(split.site)
                weight, bias, missing = _router.refit(old, bias, moments, self.damping)
                split.tensors |= _folded(split, weight, bias)
                split.load = tuple(float(share) for share in moments.load)
                whole = max(moments.output_square, 1e-300)
                before, after = moments.lost_square / whole, missing / whole
                split.notes.append(f"output error {before:.4f} before the refit, {after:.4f} after")

    def _groups(self, splits: Sequence[Split], held: Callable[[Split], int]) -> Iterator[list[Split]]:
        """Runs of splits whose sums fit into memory together; one that does not fit alone is alone."""
        group: list[Split] = []
        for split in splits:
            if group and sum(map(held, [*group, split])) > self.memory * 1e9:
                yield group
                group = []
            group.append(split)
        yield group

    # -- what is handed back ----------------------------------------------------------------------------------

    def _edit(self, split: Split) -> SplitExperts:
        return SplitExperts(
            site=split.site.path, experts=split.experts, shared=split.shared, active=self.active,
            weighting=self.weighting, selector=self.router == "ridge" and self.weighting == "one_plus_logit",
        )  # fmt: skip

    def _evidence(self, split: Split) -> Evidence:
        note = "; ".join(split.notes)
        return Evidence(site=split.site.path, component=split.site.component, scores=split.load, note=note)


def divisors(width: int) -> list[int]:
    """Numbers of experts of equal size into which so many channels can be split."""
    return [count for count in range(2, width + 1) if width % count == 0]


def _hidden(graph: ModelGraph, site: FeedForwardSite) -> int:
    return int(graph.weight(f"{site.consumer}.weight").shape[0])


def _folded(split: Split, weight: Tensor, bias: Tensor | None) -> Mapping[str, Tensor]:
    """A consumer's weight (H, I) as the tensors of the split: (E, H, m), and (H, S) of the shared channels."""
    place = split.place
    stacked = weight[:, list(sum(split.experts, ()))].reshape(len(weight), len(split.experts), -1)
    made = {f"{place.path}.experts.{place.consumer}.weight": stacked.transpose(0, 1).contiguous()}
    if split.shared:
        made[f"{place.path}.shared_expert.{place.consumer}.weight"] = weight[:, list(split.shared)]
    owner = split.site.consumer if split.site.shared_consumer else place.path
    return made if bias is None else {**made, f"{owner}.bias": bias}
