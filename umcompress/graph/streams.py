"""The streams of a block that has several: which argument of its forward comes back where in its result.

Code of such blocks returns its streams under the names of the arguments: `return encoder_hidden_states, hidden_states`.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache
from typing import Any

from torch import nn

from umcompress.graph.lower import original_class

_STREAM = "hidden_states"
# What the routers of ZAYA hand on from block to block is named like a stream and is none.
_NO_STREAM = "router"


def streams_of(block: nn.Module) -> dict[str, int]:
    """Argument -> position in the returned tuple, of each stream; empty for a block with one stream."""
    kind: Any = original_class(block)
    return dict(_streams(kind))


def bound(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of a block by name."""
    forward: Any = original_class(block).forward
    names = list(inspect.signature(inspect.unwrap(forward)).parameters)[1:]
    return dict(zip(names, args, strict=False)) | kwargs


@cache
def _streams(cls: Any) -> tuple[tuple[str, int], ...]:
    forward = inspect.unwrap(cls.forward)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(forward)))
    except (OSError, TypeError, SyntaxError):
        return ()
    arguments = set(inspect.signature(forward).parameters)
    found: list[tuple[tuple[str, int], ...]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
            names = [one.id if isinstance(one, ast.Name) else "" for one in node.value.elts]
            places = [
                (name, place) for place, name in enumerate(names)
                if name in arguments and _STREAM in name and _NO_STREAM not in name
            ]  # fmt: skip
            found.append(tuple(places))
    several = [places for places in found if len(places) > 1]
    return several[0] if several else ()
