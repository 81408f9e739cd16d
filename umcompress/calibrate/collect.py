"""Collect all declared statistics in one sweep over the calibration data, or several where memory is short.

Similarities are observed inside the blocks: nodes are put into copies of the traced graphs, which are lowered
for the length of the sweep.  What enters a Linear (feed-forward channels, heads) is observed by a hook on it,
because heads are joined inside the attention, which is a leaf.  Afterwards the model is exactly as before.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from umcompress.calibrate.declare import (
    BlockSimilarity,
    BranchSimilarity,
    ChannelActivation,
    ChannelSamples,
    ContributionMoments,
    Declaration,
    HeadContribution,
    Heavy,
    RoutedMoments,
)
from umcompress.calibrate.expert_sums import ContributionSum, InputAndChannels, RoutedSum, SampleDraw
from umcompress.calibrate.kept_pairs import KeptPairs
from umcompress.calibrate.observers import ChannelSum, Columns, HeadSum, MomentSum, SimilaritySum, watch_block
from umcompress.calibrate.on_demand import GroupCache, Values, ValuesOnDemand, sizes
from umcompress.calibrate.statistics import Key, Measured, Rework, Statistics, site_key
from umcompress.documents.plan import Edit
from umcompress.graph.branches import Branch, told_apart
from umcompress.graph.lower import lowered
from umcompress.graph.model_graph import ModelGraph
from umcompress.graph.repeats import counts
from umcompress.graph.sites import FeedForwardSite
from umcompress.graph.trace import call_name
from umcompress.graph.watched import watching


class _Accumulator(Protocol):
    def result(self) -> Any: ...


def collect(
    graph: ModelGraph,
    declarations: Iterable[Declaration],
    feed: Callable[[], None],
    task: str = "understanding",
    rework: Rework | None = None,
    memory: float = math.inf,
    say: Callable[[str], None] = lambda text: None,
    kept: KeptPairs | None = None,
) -> Statistics:
    """Run `feed` over the instrumented model and return what was declared, frozen.

    feed: runs the model of `graph` over the calibration items of `task`; not called when nothing is declared. Called
    once, and again while values are read where heavy declarations need more than `memory` GB for all of their sites.
    rework: edits -> (graph, feed) of an edited copy, which makes `Statistics.remeasure` work.
    say: is called with a message for each further sweep.
    kept: what an earlier sweep over the same model and data left: declarations that it suffices for need no sweep.
    """
    wanted = tuple(dict.fromkeys(declarations))
    heavy = [declaration for declaration in wanted if isinstance(declaration, Heavy)]

    def sweep(
        declarations: Sequence[Declaration], keys: Collection[Key], pairs: KeptPairs | None = None
    ) -> Values:
        watching = _Sweep(graph, keys, pairs)
        for declaration in declarations:
            watching.declare(declaration)
        watching.run(feed)
        return watching.results()

    def sweep_again(keys: Collection[Key]) -> Values:
        say(f"another sweep, for {len(keys)} of {len(every)} feed-forwards")
        return sweep(heavy, keys)

    every = sizes(graph, heavy)
    shelf = GroupCache(every, memory * 1e9, sweep_again)
    values: dict[Declaration, Measured] = {}
    if wanted and kept is not None and (known := _sums_of(kept, graph, wanted)) is not None:
        values = {declaration: Measured(declaration, sums, task) for declaration, sums in known.items()}
    elif wanted:
        kept = KeptPairs(memory * 1e9 - sum(every.values()))
        found = sweep(wanted, first := shelf.first(), kept)
        shelf.put(first, {declaration: found[declaration] for declaration in heavy})
        for declaration in wanted:
            of_sites = found[declaration]
            if isinstance(declaration, Heavy):
                of_sites = ValuesOnDemand(shelf, declaration, list(sizes(graph, [declaration])))
            values[declaration] = Measured(declaration, of_sites, task)

    def again(edits: Sequence[Edit]) -> tuple[ModelGraph, Statistics]:
        assert rework is not None
        edited, feed_edited = rework(edits)
        return edited, collect(edited, wanted, feed_edited, task, memory=memory, say=say)

    return Statistics(
        values, task, again=None if rework is None else again,
        more=lambda further: collect(graph, further, feed, task, rework, memory, say, kept),
    )  # fmt: skip


def _sums_of(kept: KeptPairs, graph: ModelGraph, declarations: Sequence[Declaration]) -> Values | None:
    """The values of declarations about splits, from pairs that were kept; None where a sweep has to find them."""
    found: dict[Declaration, dict[Key, Any]] = {}
    for declaration in declarations:
        if not isinstance(declaration, ContributionMoments | RoutedMoments):
            return None
        if not kept.has([site_key(site) for site in _split_sites(graph, declaration)]):
            return None
        results = found[declaration] = {}
        for site, total in _split_sums(graph, declaration):
            for x, h in kept.of(site_key(site)):
                total.add(x, h)
            results[site_key(site)] = total.result()
    return found


def _split_sites(graph: ModelGraph, declaration: ContributionMoments | RoutedMoments) -> list[FeedForwardSite]:
    return [site for site in graph.feed_forwards(stack="all") if site.path in declaration.routing]


def _split_sums(
    graph: ModelGraph, declaration: ContributionMoments | RoutedMoments
) -> Iterator[tuple[FeedForwardSite, ContributionSum | RoutedSum]]:
    kind = ContributionSum if isinstance(declaration, ContributionMoments) else RoutedSum
    for site in _split_sites(graph, declaration):
        yield site, kind(graph.consumer_weight(site), declaration.routing[site.path])


class _Sweep:
    """What to observe in one sweep, and the accumulators.  Of large statistics only the sites in `keys`.

    pairs: keeps what the feed-forwards see whose tokens are drawn, since splits of them may be measured next.
    """

    def __init__(self, graph: ModelGraph, keys: Collection[Key], pairs: KeptPairs | None = None) -> None:
        self.graph, self.keys, self.kept = graph, keys, pairs
        self.sums: dict[Declaration, dict[Key, _Accumulator]] = {}
        # block path -> (branch whose incoming stream is "before", branch whose add is "after", sum)
        self.streams: dict[str, list[tuple[Branch, Branch, SimilaritySum]]] = {}
        # Blocks with one stream: what goes in and what comes out, whatever the block does to it inside.
        self.wholes: list[tuple[str, SimilaritySum]] = []
        # (module whose input is watched, its component, what is told of the input)
        self.inputs: list[tuple[str, str, Callable[[Tensor], None]]] = []

    def declare(self, declaration: Declaration) -> None:
        sums = self.sums[declaration] = {}
        if isinstance(declaration, ContributionMoments | RoutedMoments):
            for site, total in _split_sums(self.graph, declaration):
                sums[site_key(site)] = total
                self._pairs(site, total.add)
            return
        query = declaration.scope.query()
        if isinstance(declaration, BlockSimilarity | BranchSimilarity):
            for block in self.graph.blocks(**query):
                if isinstance(declaration, BlockSimilarity) and len(block.components) == 1:
                    sums[site_key(block, *block.components)] = whole = SimilaritySum()
                    self.wholes.append((block.path, whole))
                    continue
                for key, first, last in self._spans(block.path, declaration):
                    # One attention adds to several streams: its score is the mean over the tokens of all.
                    similarity = sums.setdefault(key, SimilaritySum())
                    assert isinstance(similarity, SimilaritySum)
                    self.streams.setdefault(block.path, []).append((first, last, similarity))
        elif isinstance(declaration, HeadContribution):
            for place in self.graph.attentions(**query):
                weights = self.graph.output_weights(place)
                sums[site_key(place)] = heads = HeadSum(
                    weights, place.key_value_groups, place.query_heads_per_group
                )
                for number, (path, start) in enumerate(place.outputs):
                    seen = Columns(partial(heads.add, output=number), start, weights[number].shape[1])
                    self.inputs.append((path, place.component, seen))
        elif isinstance(declaration, ChannelSamples):
            for site in self.graph.feed_forwards(**query):
                if (key := site_key(site)) in self.keys:
                    sums[key] = draw = SampleDraw(declaration.tokens, declaration.seed)
                    self._pairs(site, draw.add)
                    if self.kept is not None:
                        self._pairs(site, self.kept.keep(key))
        else:
            light = isinstance(declaration, ChannelActivation)
            kind = ChannelSum if light else MomentSum
            for site in self.graph.feed_forwards(**query):
                if light or site_key(site) in self.keys:
                    sums[site_key(site)] = channels = kind(site.width, self._device(site))
                    self.inputs.append((site.consumer, site.component, _of_site(channels.add, site)))

    def _device(self, site: FeedForwardSite) -> torch.device:
        """The device of the channels; weights of a skeleton are read into main memory."""
        device = self.graph.model.get_parameter(f"{site.consumer}.weight").device
        return torch.device("cpu") if device.type == "meta" else device

    def _pairs(self, site: FeedForwardSite, add: Callable[[Tensor, Tensor], None]) -> None:
        pairs = InputAndChannels(add)
        self.inputs += [
            (site.producers[0], site.component, pairs.enter),
            (site.consumer, site.component, _of_site(pairs.inner, site)),
        ]

    def _spans(
        self, path: str, declaration: BlockSimilarity | BranchSimilarity
    ) -> Iterator[tuple[Key, Branch, Branch]]:
        """(key, first branch, last branch) of every site in a block that the declaration covers."""
        found = self.graph.block(path)
        component = declaration.scope.component
        joint = component == "shared" and found.site.has_streams
        own = [branch for branch in found.branches if joint or component in (None, branch.component)]
        if isinstance(declaration, BranchSimilarity):
            parts = dict(zip(found.branches, told_apart(found.branches), strict=True))
            for branch in own:
                if branch.kind == declaration.unit:
                    yield (f"{path}.{parts.get(branch) or branch.kind}", branch.component), branch, branch
            return
        for name in dict.fromkeys(branch.component for branch in own):
            of_component = [branch for branch in own if branch.component == name]
            yield site_key(found.site, name), of_component[0], of_component[-1]

    def results(self) -> Values:
        return {declaration: {key: s.result() for key, s in sums.items()} for declaration, sums in self.sums.items()}

    def run(self, feed: Callable[[], None]) -> None:
        model = self.graph.model
        with ExitStack() as undo, torch.no_grad():
            for path, watched in self.streams.items():
                undo.enter_context(lowered(model.get_submodule(path), self._instrumented(path, watched)))
            for path, whole in self.wholes:
                for hook in watch_block(model.get_submodule(path), whole):
                    undo.callback(hook.remove)
            for path, component, add in self.inputs:
                hook = model.get_submodule(path).register_forward_pre_hook(partial(_pass_input, component, add))
                undo.callback(hook.remove)
            with watching(self._paths()):
                feed()

    def _paths(self) -> set[str]:
        """Of everything that is observed."""
        return {*self.streams, *(path for path, _ in self.wholes), *(path for path, *_ in self.inputs)}

    def _instrumented(self, path: str, watched: list[tuple[Branch, Branch, SimilaritySum]]) -> fx.Graph:
        graph = self.graph.block_graph(path)
        here = dict(zip(self.graph.block(path).graph.nodes, graph.nodes, strict=True))
        for first, last, similarity in watched:
            before, after = here[first.before], here[last.after]
            if first is last and first.outer is not None:
                # Of parallel branches, what this one alone would make of the stream.
                own = here[first.branch]
                with graph.inserting_after(own):
                    after = graph.call_function(operator.add, (before, own))
            if call_name(after) != "add" or first is not last:
                # An in-place add would overwrite what came in before anyone could look at it.
                with graph.inserting_after(_last_placeholder(before)):
                    before = graph.call_method("clone", (before,))
            with graph.inserting_after(after):
                graph.call_function(_observer(first.component, similarity), (before, after))
        graph.lint()
        return graph


def _of_site(add: Callable[[Tensor], None], site: FeedForwardSite) -> Callable[[Tensor], None]:
    """Tell `add` of the channels of a site, of all that its last linear reads."""
    return Columns(add, site.consumer_start, site.width) if site.shared_consumer else add


def _last_placeholder(node: fx.Node) -> fx.Node:
    """The node behind which code can be inserted: the last argument if `node` is an argument."""
    while node.op == "placeholder" and node.next.op == "placeholder":
        node = node.next
    return node


def _observer(component: str, similarity: SimilaritySum) -> Callable[[Tensor, Tensor], None]:
    # fx names a function by its __name__; a bound method or an object has none of its own.
    def observe(before: Tensor, after: Tensor) -> None:
        if counts(component):
            similarity.add(before, after)

    return observe


def _pass_input(
    component: str, add: Callable[[Tensor], None], module: nn.Module, inputs: tuple[Tensor, ...]
) -> None:
    if counts(component):
        add(inputs[0])
