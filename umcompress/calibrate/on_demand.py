"""Statistics too large to hold for all sites at once: a group of sites is measured when one of them is read.

What a pass sees is a mapping like any other.  Reading a site that is not held drops the sites that are, and sweeps
for this one and those behind it, as many as fit into the memory that calibration may take.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from umcompress.calibrate.declare import Declaration, Heavy
from umcompress.calibrate.statistics import Key, UpperTriangleMoments, site_key
from umcompress.graph.linears import output_size
from umcompress.graph.model_graph import ModelGraph

Values: TypeAlias = Mapping[Declaration, Mapping[Key, Any]]


def sizes(graph: ModelGraph, declarations: Sequence[Heavy]) -> dict[Key, int]:
    """Bytes that these declarations need for each site, in depth order."""
    found: dict[Key, int] = {}
    asked = [({site.path for site in graph.feed_forwards(**one.scope.query())}, one) for one in declarations]
    for site in graph.feed_forwards(stack="all"):
        hidden = output_size(graph.model.get_submodule(site.consumer))
        held = [one.bytes_held(site.width, hidden) for paths, one in asked if site.path in paths]
        if held:
            found[site_key(site)] = sum(held)
    return found


def group_from(first: Key, of: Mapping[Key, int], memory: float) -> list[Key]:
    """`first` and the sites behind it, as many as fit into `memory` bytes together; at least the first."""
    keys = list(of)
    group, held = [first], of[first]
    for key in keys[keys.index(first) + 1 :]:
        held += of[key]
        if held > memory:
            break
        group.append(key)
    return group


def groups(of: Mapping[Key, int], memory: float) -> Iterator[list[Key]]:
    """The groups of sites that are measured together when sites are read in order."""
    rest = dict(of)
    while rest:
        group = group_from(next(iter(rest)), rest, memory)
        yield group
        for key in group:
            del rest[key]


class GroupCache:
    """Holds the values of one group of sites at a time."""

    def __init__(self, of: Mapping[Key, int], memory: float, sweep: Callable[[Collection[Key]], Values]) -> None:
        self._sizes, self._memory, self._sweep = of, memory, sweep
        self._keys: Collection[Key] = ()
        self._values: Values = {}

    def first(self) -> Collection[Key]:
        """The first group in depth order, which is measured together with the other statistics."""
        return next(groups(self._sizes, self._memory), [])

    def put(self, keys: Collection[Key], values: Values) -> None:
        self._keys, self._values = keys, values

    def get(self, declaration: Declaration, key: Key) -> Any:
        if key not in self._keys:
            # Before the sweep, so that there is never more than one group.
            self.put((), {})
            keys = group_from(key, self._sizes, self._memory)
            self.put(keys, self._sweep(keys))
        return self._values[declaration][key]


class ValuesOnDemand(Mapping[Key, Any]):
    """The values of one declaration, measured by group when they are read."""

    def __init__(self, shelf: GroupCache, declaration: Declaration, keys: Sequence[Key]) -> None:
        self._shelf, self._declaration, self._keys = shelf, declaration, dict.fromkeys(keys)

    def __getitem__(self, key: Key) -> Any:
        if key not in self._keys:
            raise KeyError(key)
        value = self._shelf.get(self._declaration, key)
        return value.whole() if isinstance(value, UpperTriangleMoments) else value

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
