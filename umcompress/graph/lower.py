"""Lower a graph onto its block: generated Python becomes the `forward` of a generated subclass.

The block object stays the same and only its class changes, so attributes, state-dict names, hooks, `deepcopy`
and what a base class wraps around `forward` go on working. The graph is kept on the generated class, where
copies of the block share it; it is never changed in place.
"""

from __future__ import annotations

import copy
import hashlib
import linecache
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn

from umcompress.errors import ModelError

_GRAPH = "_umcompress_graph"
_BASE = "_umcompress_base"
# The keyword under which a node holds the block's `**kwargs` when it passes them on.
EXTRA = "_extra_kwargs"
_PASSED_ON = re.compile(rf"\b{EXTRA} = (\w+)")


def lowered_graph(block: nn.Module) -> fx.Graph | None:
    """The graph that a block runs, if it was lowered. Do not change it: copy it first."""
    found = type(block).__dict__.get(_GRAPH)
    return found if isinstance(found, fx.Graph) else None


def original_class(block: nn.Module) -> type[nn.Module]:
    """The class that the block had before it was ever lowered."""
    base = type(block).__dict__.get(_BASE, type(block))
    assert isinstance(base, type)
    return base


def stand_for(cls: type[nn.Module], base: type[nn.Module]) -> None:
    """Let `original_class` give `base` for modules of a class that was made from it."""
    setattr(cls, _BASE, base)


def lower(block: nn.Module, graph: fx.Graph) -> None:
    """Make `block` run `graph`. Raises ModelError when the instance has a forward of its own."""
    if "forward" in block.__dict__:
        raise ModelError(
            f"give a {original_class(block).__name__} its rewritten forward",
            "a forward set on the instance itself, which would hide it (an accelerate hook?)",
            "remove such hooks before compressing, and put them back after",
        )
    graph = copy.deepcopy(graph)
    base = original_class(block)
    body = {"forward": _compile(graph, base), _GRAPH: graph, _BASE: base, "__module__": base.__module__}
    block.__class__ = type(base.__name__, (base,), body)


@contextmanager
def lowered(block: nn.Module, graph: fx.Graph) -> Iterator[None]:
    """Run `graph` in place of the block's own forward for a while (calibration)."""
    before = type(block)
    lower(block, graph)
    try:
        yield
    finally:
        block.__class__ = before


def python_source(graph: fx.Graph) -> tuple[str, dict[str, Any]]:
    """The generated module source, which defines `forward`, and the globals that it needs."""
    code = graph.python_code("self")
    return _PASSED_ON.sub(r"**\1", code.src), dict(code.globals)


def _compile(graph: fx.Graph, base: type[nn.Module]) -> Any:
    source, space = python_source(graph)
    digest = hashlib.sha256(source.encode()).hexdigest()[:12]
    name = f"<lowered {base.__name__} {digest}>"
    # With the source in linecache a traceback through generated code shows its lines.
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), space)  # source is generated from our own graph
    forward = space["forward"]
    forward.__module__ = base.__module__
    return forward
