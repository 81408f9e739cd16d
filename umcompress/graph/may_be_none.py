"""What a part that is called as a whole may leave out of its result, by its own source."""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache
from typing import Any

from torch import nn


def may_be_none(leaf: nn.Module, place: int) -> bool:
    """Whether this part of what a forward returns may be None: `return x, self.bias` of a module without one."""
    kind: Any = type(leaf)
    names, attributes = _left_out(kind, place)
    return names or any(getattr(leaf, name, None) is None for name in attributes)


@cache
def _left_out(cls: Any, place: int) -> tuple[bool, frozenset[str]]:
    """Whether it is None or a name that None is ever assigned to; and which attributes it is."""
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
    """Or is where something is otherwise: `x if given else None`."""
    if isinstance(node, ast.IfExp):
        return _is_none(node.body) or _is_none(node.orelse)
    return isinstance(node, ast.Constant) and node.value is None
