"""Forwards rewritten so that tracing hears every question: some that Python answers about a proxy by itself.

`x is None` is never true of a proxy, `isinstance` knows only its class, `x[i] = v` is no call. While a block is
traced, its modules run their own source with these turned into functions; what they answer is up to the mode.
"""

from __future__ import annotations

import ast
import inspect
import operator
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from types import FunctionType
from typing import Any

from torch import fx, nn

from umcompress.graph.asked_casts import asked_cast, cast_as
from umcompress.graph.optional_outputs import added, more

_SHAPING = {"view", "reshape", "expand"}
_NONE, _ITEM, _MORE = "_umcompress_is_none", "_umcompress_set_item", "_umcompress_more"
_CAST = "_umcompress_cast_as"


class _Questions(ast.NodeTransformer):
    def __init__(self) -> None:
        self.found = False
        self.arguments: set[str] = set()

    def visit_Name(self, node: ast.Name) -> ast.AST:
        self.found |= node.id in ("isinstance", "len")
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if len(node.ops) != 1 or not isinstance(node.ops[0], (ast.Is, ast.IsNot)):
            return node
        left, right = node.left, node.comparators[0]
        asked = left if _is_none(right) else right if _is_none(left) else None
        if asked is None:
            return node
        self.found = True
        call = ast.Call(ast.Name(_NONE, ast.Load()), [asked], [])
        return call if isinstance(node.ops[0], ast.Is) else ast.UnaryOp(ast.Not(), call)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        self.generic_visit(node)
        target = node.targets[0]
        if len(node.targets) != 1 or not isinstance(target, ast.Subscript) or not isinstance(target.value, ast.Name):
            return node
        self.found = True
        name, index = target.value.id, _index(target.slice)
        made = ast.Call(ast.Name(_ITEM, ast.Load()), [ast.Name(name, ast.Load()), index, node.value], [])
        return ast.Assign([ast.Name(name, ast.Store())], made)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """`x.view(*shape)` as `x.view(shape)`, the same to torch: how long a shape is only Python would ask."""
        self.generic_visit(node)
        shaping = isinstance(node.func, ast.Attribute) and node.func.attr in _SHAPING and not node.keywords
        if shaping and len(node.args) == 1 and isinstance(starred := node.args[0], ast.Starred):
            self.found = True
            node.args = [starred.value]
        return node

    def visit_If(self, node: ast.If) -> ast.AST:
        known = added(node, self.arguments, _MORE) or asked_cast(node, _CAST)
        if known is None:
            return self.generic_visit(node)
        self.found = True
        return self.generic_visit(known)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.decorator_list, node.returns = [], None
        every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        for argument in every:
            if argument is not None:
                argument.annotation = None
                self.arguments.add(argument.arg)
        return self.generic_visit(node)


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _index(node: ast.expr) -> ast.expr:
    """An index as a value: `1:2` outside of brackets is `slice(1, 2, None)`."""
    if isinstance(node, ast.Slice):
        parts = [part or ast.Constant(None) for part in (node.lower, node.upper, node.step)]
        return ast.Call(ast.Name("slice", ast.Load()), parts, [])
    if isinstance(node, ast.Tuple):
        return ast.Tuple([_index(part) for part in node.elts], ast.Load())
    return node


@lru_cache(maxsize=512)
def _compiled(function: FunctionType) -> tuple[Any, str] | None:
    """The code of a factory that makes the rewritten function from its free variables.

    None where there is no source, or nothing to rewrite in it.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    body = tree.body[0]
    if not isinstance(body, ast.FunctionDef):
        return None
    questions = _Questions()
    made = questions.visit(body)
    if not questions.found:
        return None
    free = [ast.arg(name) for name in function.__code__.co_freevars]
    arguments = ast.arguments([], free, None, [], [], None, [])
    factory = ast.FunctionDef("_factory", arguments, [made, ast.Return(ast.Name(body.name, ast.Load()))], [], None)
    module = ast.fix_missing_locations(ast.Module([factory], []))
    ast.increment_lineno(module, function.__code__.co_firstlineno - 1)
    return compile(module, function.__code__.co_filename, "exec"), body.name


def rewritten(function: FunctionType, answers: Mapping[str, Callable[..., Any]]) -> FunctionType:
    """The function with its questions asked aloud. answers: `is_none`, `isinstance`, `len`."""
    found = _compiled(function)
    if found is None:
        return function
    space = dict(function.__globals__)
    exec(found[0], space)  # the function's own source
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    made: FunctionType = space["_factory"](*cells)
    made.__defaults__, made.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    space |= {_NONE: answers["is_none"], _ITEM: set_item, _MORE: more, _CAST: cast_as}
    space |= {"isinstance": answers["isinstance"], "len": answers["len"]}
    return made


def set_item(value: Any, index: Any, new: Any) -> Any:
    """`value[index] = new`, as a call that gives `value`: in a graph its later uses come after it."""
    if isinstance(value, fx.Proxy):
        return value.tracer.create_proxy("call_function", set_item, (value, index, new), {})
    operator.setitem(value, index, new)
    return value


@contextmanager
def asking(
    block: nn.Module, is_leaf: Callable[[nn.Module], bool], answers: Mapping[str, Callable[..., Any]]
) -> Iterator[None]:
    """Let the block, and all that is opened when it is traced, run rewritten forwards.

    Of the block itself the function below its decorators, whose `*args, **kwargs` hide the real signature.
    """
    before: list[tuple[nn.Module, type[nn.Module]]] = []
    try:
        for module in block.modules():
            cls = type(module)
            forward: Any = inspect.unwrap(cls.forward)
            plain = isinstance(forward, FunctionType)
            if not plain or (module is not block and (forward is not cls.forward or is_leaf(module))):
                continue
            asking_forward = rewritten(forward, answers)
            if asking_forward is cls.forward:
                continue
            shim = type(cls.__name__, (cls,), {"__module__": cls.__module__})
            # Assigned after creation: some bases wrap a `forward` that they find in the body of a subclass.
            shim.forward = asking_forward  # type: ignore[attr-defined]
            before.append((module, cls))
            module.__class__ = shim
        yield
    finally:
        for module, cls in before:
            module.__class__ = cls
