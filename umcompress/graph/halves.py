"""Halves of a value, taken by slices at half of its last size: `x[..., : n // 2]` and `x[..., n // 2 :]`."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from umcompress.graph.trace import call_name


def halves(graph: fx.Graph) -> tuple[dict[fx.Node, tuple[fx.Node, int]], frozenset[fx.Node]]:
    """Map each slice to (what it is a half of, 0 or 1); and the nodes that only ask for the size.

    Of a value that anything else uses there is no entry: the halves are all that is read of it.
    """
    found: dict[fx.Node, tuple[fx.Node, int]] = {}
    asking: set[fx.Node] = set()
    for node in graph.nodes:
        shapes = [user for user in node.users if call_name(user) == "getattr" and user.args[1] == "shape"]
        sizes = [user for shape in shapes for user in shape.users]
        middles = [user for size in sizes for user in size.users]
        cuts = {user: place for user in node.users if (place := _half(user, middles)) is not None}
        last = all(call_name(size) == "getitem" and size.args[1] == -1 for size in sizes)
        by_two = all(middle.target is operator.floordiv and middle.args[1] == 2 for middle in middles)
        sliced = {user for middle in middles for user in middle.users}
        if cuts and last and by_two and sliced <= set(cuts) and set(node.users) == {*shapes, *cuts}:
            found |= {user: (node, place) for user, place in cuts.items()}
            asking |= {*shapes, *sizes, *middles}
    return found, frozenset(asking)


def _half(node: fx.Node, middles: list[fx.Node]) -> int | None:
    """0 for `[..., :middle]`, 1 for `[..., middle:]`."""
    place: Any = node.args[1] if call_name(node) == "getitem" else None
    if not isinstance(place, tuple) or len(place) != 2 or place[0] is not Ellipsis or not isinstance(place[1], slice):
        return None
    cut: Any = place[1]
    if cut.step is None and cut.start is None and cut.stop in middles:
        return 0
    return 1 if cut.step is None and cut.stop is None and cut.start in middles else None
