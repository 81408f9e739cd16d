"""Rewrite the source of forwards for tracing: `is None`, `isinstance`, `len` and item assignment become calls.

So do the methods of the same class that a forward calls.

Python evaluates these on a proxy without asking fx: `x is None` is never true of a proxy, `isinstance` sees the class
Proxy, `x[i] = v` is recorded nowhere. While a block is traced its modules run rewritten source, in which functions
that the tracer provides give the answers.
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

from umcompress.graph.asked_casts import cast_as, parse_conditional_cast
from umcompress.graph.optional_outputs import append_if, parse_optional_output

_SHAPING = {"view", "reshape", "expand"}
_NONE, _ITEM, _MORE = "_umcompress_is_none", "_umcompress_set_item", "_umcompress_more"
_CAST = "_umcompress_cast_as"


class _QuestionsAsCalls(ast.NodeTransformer):
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
        """`x.view(*shape)` becomes `x.view(shape)`: unpacking would ask a proxy for its length."""
        self.generic_visit(node)
        shaping = isinstance(node.func, ast.Attribute) and node.func.attr in _SHAPING and not node.keywords
        if shaping and len(node.args) == 1 and isinstance(starred := node.args[0], ast.Starred):
            self.found = True
            node.args = [starred.value]
        return node

    def visit_If(self, node: ast.If) -> ast.AST:
        known = parse_optional_output(node, self.arguments, _MORE) or parse_conditional_cast(node, _CAST)
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
    """An index as an expression: `1:2` becomes `slice(1, 2, None)`."""
    if isinstance(node, ast.Slice):
        parts = [part or ast.Constant(None) for part in (node.lower, node.upper, node.step)]
        return ast.Call(ast.Name("slice", ast.Load()), parts, [])
    if isinstance(node, ast.Tuple):
        return ast.Tuple([_index(part) for part in node.elts], ast.Load())
    return node


@lru_cache(maxsize=512)
def _compiled(function: FunctionType) -> tuple[Any, str] | None:
    """Compile a factory that makes the rewritten function from its free variables.

    None where there is no source, or nothing to rewrite in it.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    body = tree.body[0]
    if not isinstance(body, ast.FunctionDef):
        return None
    questions = _QuestionsAsCalls()
    made = questions.visit(body)
    if not questions.found:
        return None
    free = [ast.arg(name) for name in function.__code__.co_freevars]
    arguments = ast.arguments([], free, None, [], [], None, [])
    factory = ast.FunctionDef("_factory", arguments, [made, ast.Return(ast.Name(body.name, ast.Load()))], [], None)
    module = ast.fix_missing_locations(ast.Module([factory], []))
    ast.increment_lineno(module, function.__code__.co_firstlineno - 1)
    return compile(module, function.__code__.co_filename, "exec"), body.name


def rewritten_forward(function: FunctionType, answers: Mapping[str, Callable[..., Any]]) -> FunctionType:
    """The function with its checks turned into calls of `answers`: `is_none`, `isinstance`, `len`."""
    found = _compiled(function)
    if found is None:
        return function
    space = dict(function.__globals__)
    exec(found[0], space)  # the function's own source
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    made: FunctionType = space["_factory"](*cells)
    made.__defaults__, made.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    space |= {_NONE: answers["is_none"], _ITEM: set_item, _MORE: append_if, _CAST: cast_as}
    space |= {"isinstance": answers["isinstance"], "len": answers["len"]}
    return made


def set_item(value: Any, index: Any, new: Any) -> Any:
    """`value[index] = new` as a call that returns `value`, so that later uses in the graph depend on it."""
    if isinstance(value, fx.Proxy):
        return value.tracer.create_proxy("call_function", set_item, (value, index, new), {})
    operator.setitem(value, index, new)
    return value


def _helpers(cls: type[nn.Module], forward: FunctionType) -> dict[str, FunctionType]:
    """The plain methods of a class that its forward names, and those that they name in turn."""
    own = [kind for kind in cls.__mro__ if issubclass(kind, nn.Module) and not kind.__module__.startswith("torch.")]
    found: dict[str, FunctionType] = {}
    todo = [forward]
    while todo:
        for name in todo.pop().__code__.co_names:
            method = next((vars(kind)[name] for kind in own if name in vars(kind)), None)
            if isinstance(method, FunctionType) and method is not forward and name not in found:
                found[name] = method
                todo.append(method)
    return found


def _only_renamed(forward: Any) -> bool:
    """Whether a forward runs as it is written: nothing is wrapped round it but transformers' names of old arguments."""
    while (inner := getattr(forward, "__wrapped__", None)) is not None:
        code = getattr(forward, "__code__", None)
        if code is None or not code.co_filename.endswith("transformers/utils/deprecation.py"):
            return False
        forward = inner
    return True


@contextmanager
def traceable_forwards(
    block: nn.Module, is_leaf: Callable[[nn.Module], bool], answers: Mapping[str, Callable[..., Any]]
) -> Iterator[None]:
    """Within, the block and every submodule that tracing descends into run rewritten forwards.

    Of the block itself the undecorated function is used: decorators hide its signature behind `*args, **kwargs`.
    """
    before: list[tuple[nn.Module, type[nn.Module]]] = []
    try:
        for module in block.modules():
            cls = type(module)
            forward: Any = inspect.unwrap(cls.forward)
            plain = isinstance(forward, FunctionType)
            if not plain or (module is not block and (not _only_renamed(cls.forward) or is_leaf(module))):
                continue
            asking_forward = rewritten_forward(forward, answers)
            asking = {
                name: made for name, method in _helpers(cls, forward).items()
                if (made := rewritten_forward(method, answers)) is not method
            }  # fmt: skip
            if asking_forward is cls.forward and not asking:
                continue
            shim = type(cls.__name__, (cls,), {"__module__": cls.__module__})
            # Assigned after creation: some bases wrap a `forward` that they find in the body of a subclass.
            for name, made in (asking | {"forward": asking_forward}).items():
                setattr(shim, name, made)
            before.append((module, cls))
            module.__class__ = shim
        yield
    finally:
        for module, cls in before:
            module.__class__ = cls
