"""Trace a block into an fx graph. Attention, norms, modules without children are leaves; the rest is opened.

Tracing is symbolic: a block whose Python asks for a value of a tensor or of an opaque argument is refused
with the place that asked, so a graph never holds an answer that was true of one call only. Further ways to
trace (guided by an example call, assumed from defaults) belong in `_MODES`.
"""

from __future__ import annotations

import copy
import inspect
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from umcompress.errors import ModelError
from umcompress.graph.lower import EXTRA, lowered_graph
from umcompress.graph.protocol import RoutedFeedForward, StreamAttention

LEAF = re.compile(r"Attention|Attn|Norm|Rotary|RoPE|Router|Experts")
ATTENTION = re.compile(r"Attention|Attn")


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is called as a whole. An attention that merely wraps another attention is opened."""
    if isinstance(module, StreamAttention | RoutedFeedForward) or not any(True for _ in module.children()):
        return True
    name = type(module).__name__
    if ATTENTION.search(name):
        return not any(ATTENTION.search(type(child).__name__) for child in module.children())
    return LEAF.search(name) is not None


def is_attention(module: nn.Module) -> bool:
    """Whether a leaf mixes tokens."""
    return isinstance(module, StreamAttention) or ATTENTION.search(type(module).__name__) is not None


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m)

    def keys(self, obj: fx.Proxy) -> Any:
        """`f(**kwargs)` on the block's own kwargs: one marker stands for whatever the caller will pass."""
        return [EXTRA]

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> fx.Node:
        if isinstance(passed := kwargs.get(EXTRA), fx.Node):
            kwargs = {**kwargs, EXTRA: passed.args[0]}
        return super().create_node(kind, target, args, kwargs, *rest, **more)


@contextmanager
def _plain_forward(block: nn.Module) -> Iterator[None]:
    """Let fx see the function below the decorators: their `*args, **kwargs` hide the real signature."""
    cls = type(block)
    forward = inspect.unwrap(cls.forward)
    if forward is cls.forward:
        yield
        return
    shim = type(cls.__name__, (cls,), {"__module__": cls.__module__})
    # Assigned after creation: some bases wrap a `forward` that they find in the body of a subclass.
    shim.forward = forward  # type: ignore[attr-defined]
    block.__class__ = shim
    try:
        yield
    finally:
        block.__class__ = cls


def _symbolic(block: nn.Module) -> fx.Graph:
    with _plain_forward(block):
        return _Tracer().trace(block)


_MODES: tuple[tuple[str, Callable[[nn.Module], fx.Graph]], ...] = (("symbolic", _symbolic),)


def _who_asked(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/torch/" not in f.filename and f.filename != __file__]
    where = f"{own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else "unknown place"
    return f"{where}  ({str(error).splitlines()[0] if str(error) else type(error).__name__})"


def trace_block(block: nn.Module, path: str = "") -> fx.Graph:
    """The graph of a block as it is now: its own copy of the lowered one if it was edited, else traced anew.

    Raises ModelError when the block cannot be traced; the message names what asked for a value.
    """
    known = lowered_graph(block)
    if known is not None:
        return copy.deepcopy(known)
    graph: fx.Graph | None = None
    asked = f"trace the block {path or '(unnamed)'} ({type(block).__module__}.{type(block).__qualname__})"
    refusals: list[str] = []
    for mode, trace in _MODES:
        try:
            graph = trace(block)
            break
        # These are what Python raises when code treats a proxy as a value.
        except (fx.proxy.TraceError, TypeError, RuntimeError, AttributeError, NotImplementedError) as error:
            refusals.append(f"{mode}: {_who_asked(error)}")
    if graph is None:
        do = "make the part that asks for a value a module of its own with no children (a leaf)"
        raise ModelError(asked, "; ".join(refusals), do)
    baked = [str(n.target) for n in graph.nodes if n.op == "get_attr" and "_tensor_constant" in str(n.target)]
    if baked:
        for name in baked:
            if hasattr(block, name):
                delattr(block, name)
        found = f"the forward makes a tensor that does not depend on its arguments ({', '.join(baked)})"
        raise ModelError(asked, found, "keep such tensors in a buffer, or make what makes them a leaf")
    _tidy(graph)
    return graph


def _tidy(graph: fx.Graph) -> None:
    """Drop annotations (meaningless in generated code), unbake `training`, order in-place calls."""
    for node in list(graph.nodes):
        node.type = None
        if node.op == "call_function" and EXTRA in node.args and not node.users:
            graph.erase_node(node)
            continue
        if node.op == "call_function" and isinstance(node.kwargs.get("training"), bool):
            with graph.inserting_before(node):
                node.update_kwarg("training", graph.create_node("get_attr", "training"))
        if _in_place(node) and node.args and isinstance(node.args[0], fx.Node):
            written = node.args[0]
            later = [user for user in written.users if user is not node and node < user]
            for user in later:
                user.replace_input_with(written, node)


def _in_place(node: fx.Node) -> bool:
    if node.op == "call_method":
        name = str(node.target)
    elif node.op == "call_function" and callable(node.target):
        name = getattr(node.target, "__name__", "")
        if name in {"iadd", "imul", "isub", "itruediv"}:
            return True
    else:
        return False
    return name.endswith("_") and not name.endswith("__")


def module_of(block: nn.Module, node: fx.Node) -> nn.Module | None:
    """The module that a node calls, if it calls one."""
    return block.get_submodule(str(node.target)) if node.op == "call_module" else None


def call_name(node: fx.Node) -> str:
    """The bare name of what a function or method node calls: `add` for `operator.add` and `Tensor.add`."""
    if node.op == "call_method":
        return str(node.target)
    target: object = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target._opname)
    return str(getattr(target, "__name__", target)) if node.op == "call_function" else ""
