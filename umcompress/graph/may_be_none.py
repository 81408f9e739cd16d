"""Whether a leaf module may return None for a part of its result, by inspection of its source."""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache
from typing import Any

from torch import nn


def may_be_none(leaf: nn.Module, place: int) -> bool:
    """Whether part `place` of what a forward returns may be None, as in `return x, self.bias` without a bias."""
    kind: Any = type(leaf)
    names, attributes = _none_sources(kind, place)
    return names or any(getattr(leaf, name, None) is None for name in attributes)


@cache
def _none_sources(cls: Any, place: int) -> tuple[bool, frozenset[str]]:
    """For part `place` of the returned tuple: whether its expression may be None, and which attributes it may be."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(cls.forward))))
    except (OSError, TypeError, SyntaxError):
        return False, frozenset()
    assigning = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    assigned = [(target, node.value) for node in assigning for target in node.targets]
    assigned += [(node.target, node.value) for node in ast.walk(tree) if isinstance(node, ast.AnnAssign) and node.value]
    nothing = {ast.unparse(target) for target, value in assigned if _is_none(value)}
    returned = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return)]
    names_of_all = {value.id for value in returned if isinstance(value, ast.Name)}
    returned += [value for target, value in assigned if isinstance(target, ast.Name) and target.id in names_of_all]
    parts = [value.elts[place] for value in returned if isinstance(value, ast.Tuple) and place < len(value.elts)]
    own = (part for part in parts if isinstance(part, ast.Attribute) and ast.unparse(part.value) == "self")
    return any(_is_none(part) or ast.unparse(part) in nothing for part in parts), frozenset(one.attr for one in own)


def _is_none(node: ast.AST | None) -> bool:
    """Whether an expression is None, or may be, as in `x if given else None`."""
    if isinstance(node, ast.IfExp):
        return _is_none(node.body) or _is_none(node.orelse)
    return isinstance(node, ast.Constant) and node.value is None
