"""Conditional casts in a forward: `if x.dtype != w.dtype and w.dtype != torch.int8: x = x.to(w.dtype)`, as in T5.

The condition is evaluated when the block runs, not when it is traced: in the graph it is one call, `cast_as`. So the
graph is valid for every dtype, also where the last linear stays in float32 and all else is in half precision.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx


def cast_as(value: Any, like: Any, *but: str) -> Any:
    """Cast `value` to the dtype of `like`, unless that is one of those in `but`; recorded as one node while tracing."""
    if isinstance(value, fx.Proxy):
        return value.tracer.create_proxy("call_function", cast_as, (value, like, *but), {})
    if not isinstance(like, torch.Tensor) or like.dtype in [getattr(torch, name) for name in but]:
        return value
    return value.to(like.dtype)


def parse_conditional_cast(node: ast.If, name: str) -> ast.stmt | None:
    """Rewrite a conditional cast as `x = name(x, w, "int8")`; None if the statement is something else."""
    made = _cast(node.body[0]) if len(node.body) == 1 and not node.orelse else None
    if made is None:
        return None
    value, like = made
    dtype = ast.Attribute(like, "dtype", ast.Load())
    differs = ast.dump(ast.Compare(ast.Attribute(value, "dtype", ast.Load()), [ast.NotEq()], [dtype]))
    tensor = ast.Attribute(ast.Name("torch", ast.Load()), "Tensor", ast.Load())
    is_tensor = ast.dump(ast.Call(ast.Name("isinstance", ast.Load()), [like, tensor], []))
    clauses, but = {ast.dump(clause): clause for clause in _clauses(node.test)}, list[str]()
    if differs not in clauses or is_tensor not in clauses:
        return None
    for text, clause in clauses.items():
        if text not in (differs, is_tensor):
            other = _other_type(clause, ast.dump(dtype))
            if other is None:
                return None
            but.append(other)
    call = ast.Call(ast.Name(name, ast.Load()), [value, like, *map(ast.Constant, but)], [])
    return ast.Assign([ast.Name(value.id, ast.Store())], call)


def _cast(statement: ast.stmt) -> tuple[ast.Name, ast.expr] | None:
    """The names (x, w) in `x = x.to(w.dtype)`."""
    match statement:
        case ast.Assign(
            [ast.Name(target)],
            ast.Call(ast.Attribute(ast.Name(source) as value, "to"), [ast.Attribute(like, "dtype")], []),
        ) if target == source:
            return value, like
    return None


def _clauses(test: ast.expr) -> Iterator[ast.expr]:
    """The operands of `and`, or the expression by itself."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        for part in test.values:
            yield from _clauses(part)
    else:
        yield test


def _other_type(clause: ast.expr, dtype: str) -> str | None:
    """The dtype in `w.dtype != torch.int8`."""
    match clause:
        case ast.Compare(left, [ast.NotEq()], [ast.Attribute(ast.Name("torch"), found)]) if ast.dump(left) == dtype:
            return found
    return None
