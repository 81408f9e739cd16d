"""Trace a block into an fx graph. Attentions, norms and modules without children are leaves.

Tracing is symbolic where possible, so the graph is valid for every call. Where Python control flow needs arguments,
they are assumed to have their defaults, and guards in the graph check every call (`graph.guards`). A submodule whose
control flow depends on values of tensors becomes a leaf; a block for which that is true itself is refused, with the
line of code that asked.
"""

from __future__ import annotations

import copy
import inspect
import re
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from umcompress.errors import ModelError
from umcompress.graph.forward_source import traceable_forwards
from umcompress.graph.guards import AssumedAnswers, SymbolicAnswers, hoist_guards
from umcompress.graph.lower import EXTRA, lowered_graph
from umcompress.graph.protocol import has_streams, is_routed
from umcompress.graph.shared_traces import shared

_HERE = Path(__file__).parent
LEAF = re.compile(r"Attention|Attn|Norm|Rotary|RoPE|Router|Experts")
ATTENTION = re.compile(r"Attention|Attn")
_CACHE = re.compile(r"^(past|layer_past|kv_cache|cache_params|cache$|use_cache$)")


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is a leaf. One that merely wraps another module that mixes tokens is not."""
    if has_streams(module) or is_routed(module) or not any(True for _ in module.children()):
        return True
    name = type(module).__name__
    if ATTENTION.search(name):
        return not any(ATTENTION.search(type(child).__name__) for child in module.children())
    return LEAF.search(name) is not None or is_mixer(module)


def is_attention(module: nn.Module) -> bool:
    """Whether a leaf mixes tokens: an attention, or a state-space or convolution layer in its place."""
    named = has_streams(module) or ATTENTION.search(type(module).__name__) is not None
    return named or is_mixer(module)


def is_mixer(module: nn.Module) -> bool:
    """Whether a module takes a cache (Mamba, DeltaNet, short convolutions), and none of its submodules does."""
    own: Any = type(module)
    if isinstance(module, nn.ModuleList) or not _takes_cache(own):
        return False
    inner: set[Any] = {type(child) for child in module.modules() if child is not module}
    return not any(_takes_cache(kind) or ATTENTION.search(kind.__name__) for kind in inner)


@cache
def _takes_cache(cls: Any) -> bool:
    """Whether the forward of a class, as it was before any rewriting, has an argument for a cache."""
    try:
        names = inspect.signature(inspect.unwrap(cls.forward)).parameters
    except (TypeError, ValueError):
        return False
    return any(_CACHE.search(name) for name in names)


class _Tracer(fx.Tracer):
    def __init__(self, answers: SymbolicAnswers, leaves: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.answers, self.leaves = answers, leaves
        # Of the innermost opened module in which tracing failed.
        self.failed: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m) or module_qualified_name in self.leaves

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except _QUESTIONS:
            self.failed = self.failed or self.path_of_module(m)
            raise

    def to_bool(self, obj: fx.proxy.Proxy) -> bool:
        return self.answers.truth(obj)

    def keys(self, obj: fx.Proxy) -> Any:
        """`f(**kwargs)` on the block's own kwargs: one marker stands for whatever the caller will pass."""
        return [EXTRA]

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> fx.Node:
        if isinstance(passed := kwargs.get(EXTRA), fx.Node):
            kwargs = {**kwargs, EXTRA: passed.args[0]}
        return super().create_node(kind, target, args, kwargs, *rest, **more)


def _trace(block: nn.Module, answers: SymbolicAnswers) -> fx.Graph:
    """Trace a block; under assumptions, submodules that need values become leaves."""
    leaves: frozenset[str] = frozenset()
    while True:
        tracer = _Tracer(answers, leaves)
        try:
            with traceable_forwards(block, is_leaf, answers.table()):
                return tracer.trace(block)
        except _QUESTIONS:
            if tracer.failed is None or tracer.failed in leaves or not isinstance(answers, AssumedAnswers):
                raise
            leaves |= {tracer.failed}


# What Python raises when code treats a proxy as a value, or believes that an argument was given.
_QUESTIONS = (
    fx.proxy.TraceError, TypeError, RuntimeError, AttributeError, NotImplementedError, ValueError, KeyError, IndexError,
)  # fmt: skip
_MODES: tuple[tuple[str, SymbolicAnswers], ...] = (("symbolic", SymbolicAnswers()), ("assumed", AssumedAnswers()))


def _who_asked(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/torch/" not in f.filename and Path(f.filename).parent != _HERE]
    where = f"{own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else "unknown place"
    return f"{where}  ({str(error).splitlines()[0] if str(error) else type(error).__name__})"


def trace_block(block: nn.Module, path: str = "") -> fx.Graph:
    """The graph of a block as it is now: its own copy of the lowered one if it was edited, else traced anew.

    Raises ModelError when the block cannot be traced; the message names what asked for a value.
    """
    known = lowered_graph(block)
    if known is not None:
        return copy.deepcopy(known)
    return shared(block, is_leaf, lambda: _traced_anew(block, path))


def _traced_anew(block: nn.Module, path: str) -> fx.Graph:
    graph: fx.Graph | None = None
    asked = f"trace the block {path or '(unnamed)'} ({type(block).__module__}.{type(block).__qualname__})"
    refusals: list[str] = []
    for mode, answers in _MODES:
        try:
            graph = _trace(block, answers)
            break
        except _QUESTIONS as error:
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
    """Clean a traced graph: drop annotations, read `training` from the module, order in-place calls and guards."""
    hoist_guards(graph)
    _forget_questions(graph)
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


def _forget_questions(graph: fx.Graph) -> None:
    """Erase what was only asked to find the way (`x.device.type == "mps"`): its guard has the answer."""
    asked = ("getattr", "eq", "ne")
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users and call_name(node) in asked:
            graph.erase_node(node)


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
