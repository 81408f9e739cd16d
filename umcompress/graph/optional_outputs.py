"""What a block returns besides its stream when it is asked to: `if use_cache: outputs += (cache,)`.

Code written for transformers 4 ends so. The question is asked when the block is called, not when it is traced: in
the graph the addition is one call, `more`, which every other part of the graph may look through.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from functools import cache
from typing import Any

from torch import fx, nn

from umcompress.graph.protocol import StreamAttention

_CACHE_FLAG, _CACHE = re.compile(r"cache|past|present"), re.compile(r"past|kv_cache")
_WEIGHTS = re.compile(r"^att\w*_(weights|probs|scores)")


def more(outputs: tuple[Any, ...], flag: Any, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """`outputs`, and `values` behind them if `flag`; a node of the graph while a block is traced."""
    if isinstance(flag, fx.Proxy):
        made: Any = flag.tracer.create_proxy("call_function", more, (outputs, flag, values), {})
        return made  # type: ignore[no-any-return]
    return outputs + values if flag else outputs


def is_tail(node: fx.Node) -> bool:
    """Whether a node only adds to what is returned."""
    return node.op == "call_function" and node.target is more


def without_tail(returned: Any) -> Any:
    """What a block returns in any case."""
    while isinstance(returned, fx.Node) and is_tail(returned):
        returned = returned.args[0]
    return returned


def let_go(graph: fx.Graph, leaf: fx.Node, attention: nn.Module) -> None:
    """An attention that is dropped gives nothing more: its cache is returned as it was given, other parts as None.

    What the block returns without being asked is its weights only: what else an attention makes, blocks above may read.
    """
    if isinstance(attention, StreamAttention) and len(attention.stream_components) > 1:
        return
    named = dict(zip(inspect.signature(attention.forward).parameters, leaf.args, strict=False)) | leaf.kwargs
    handed = next((value for name, value in named.items() if _CACHE.search(name)), None)
    for node in [node for node in graph.nodes if is_tail(node)]:
        outputs, flag, values = node.args
        kept = handed if isinstance(flag, fx.Node) and _CACHE_FLAG.search(str(flag.target)) else None
        assert isinstance(values, tuple | list)
        node.args = (outputs, flag, tuple(kept if _made_by(value, leaf) else value for value in values))
    kind: Any = type(attention)
    returned, weights = graph.output_node().args[0], _weights_of(kind)
    if isinstance(returned, tuple):
        graph.output_node().args = (tuple(None if _place(value, leaf) in weights else value for value in returned),)


@cache
def _weights_of(cls: Any) -> frozenset[int]:
    """Where an attention's weights are in what it returns, by what its forward calls them."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(cls.forward))))
    except (OSError, TypeError, SyntaxError):
        return frozenset()
    returned = (node.value for node in ast.walk(tree) if isinstance(node, ast.Return))
    every = [
        {place for place, part in enumerate(parts.elts) if isinstance(part, ast.Name) and _WEIGHTS.search(part.id)}
        for parts in returned if isinstance(parts, ast.Tuple)
    ]  # fmt: skip
    return frozenset(set.intersection(*every)) if every else frozenset()


def _made_by(value: Any, leaf: fx.Node) -> bool:
    """Whether a value is a leaf's result, or a part of it."""
    if not isinstance(value, fx.Node):
        return False
    return value is leaf or (getattr(value.target, "__name__", "") == "getitem" and value.args[0] is leaf)


def _place(value: Any, leaf: fx.Node) -> Any:
    """Which part of a leaf's result a value is; None where it is none."""
    return value.args[1] if _made_by(value, leaf) and value is not leaf else None


def added(node: ast.If, arguments: set[str], name: str) -> ast.stmt | None:
    """`if flag: outputs += (x,)` as `outputs = name(outputs, flag, (x,))`; None where that is not what it is."""
    if node.orelse or len(node.body) != 1 or not isinstance(node.test, ast.Name) or node.test.id not in arguments:
        return None
    (statement,) = node.body
    target: ast.expr
    if isinstance(statement, ast.AugAssign):
        target, operator, values = statement.target, statement.op, statement.value
    elif isinstance(statement, ast.Assign) and isinstance(statement.value, ast.BinOp) and len(statement.targets) == 1:
        target, operator, values = statement.targets[0], statement.value.op, statement.value.right
        if ast.dump(statement.value.left) != ast.dump(ast.Name(getattr(target, "id", ""), ast.Load())):
            return None
    else:
        return None
    if not isinstance(target, ast.Name) or not isinstance(operator, ast.Add) or not isinstance(values, ast.Tuple):
        return None
    call = ast.Call(ast.Name(name, ast.Load()), [ast.Name(target.id, ast.Load()), node.test, values], [])
    return ast.Assign([ast.Name(target.id, ast.Store())], call)
