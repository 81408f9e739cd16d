"""Optional outputs of a block: `if use_cache: outputs += (cache,)`, as code written for transformers 4 ends.

The condition is evaluated when the block runs, not when it is traced: in the graph the addition is one call,
`append_if`, which the search for branches ignores.
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


def append_if(outputs: tuple[Any, ...], flag: Any, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """`outputs`, with `values` appended if `flag`; recorded as one node while tracing."""
    if isinstance(flag, fx.Proxy):
        made: Any = flag.tracer.create_proxy("call_function", append_if, (outputs, flag, values), {})
        return made  # type: ignore[no-any-return]
    return outputs + values if flag else outputs


def is_optional_output(node: fx.Node) -> bool:
    """Whether a node only appends optional outputs."""
    return node.op == "call_function" and node.target is append_if


def without_optional_outputs(returned: Any) -> Any:
    """What a block returns without its optional outputs."""
    while isinstance(returned, fx.Node) and is_optional_output(returned):
        returned = returned.args[0]
    return returned


def detach_attention(graph: fx.Graph, leaf: fx.Node, attention: nn.Module) -> None:
    """Replace the results of an attention that is dropped: its cache is returned unchanged, other parts become None.

    Of what the block returns in any case only attention weights are replaced: later blocks may read anything else.
    """
    if isinstance(attention, StreamAttention) and len(attention.stream_components) > 1:
        return
    named = dict(zip(inspect.signature(attention.forward).parameters, leaf.args, strict=False)) | leaf.kwargs
    handed = next((value for name, value in named.items() if _CACHE.search(name)), None)
    for node in [node for node in graph.nodes if is_optional_output(node)]:
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
    """The position of the attention weights in an attention's result, found by the variable names in its forward."""
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
    """Whether a value is the result of a leaf, or a part of it."""
    if not isinstance(value, fx.Node):
        return False
    return value is leaf or (getattr(value.target, "__name__", "") == "getitem" and value.args[0] is leaf)


def _place(value: Any, leaf: fx.Node) -> Any:
    """The position of a value in a leaf's result; None if it is not part of it."""
    return value.args[1] if _made_by(value, leaf) and value is not leaf else None


def parse_optional_output(node: ast.If, arguments: set[str], name: str) -> ast.stmt | None:
    """Rewrite `if flag: outputs += (x,)` as `outputs = name(outputs, flag, (x,))`; None for other statements."""
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
