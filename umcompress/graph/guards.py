"""What tracing assumes about the arguments of a forward, and the guards that check each call against it.

Symbolic: nothing is assumed, so the graph is valid for every call. Assumed: an argument is taken to be its default, or
to be given where it has none or the block says so; every assumption becomes a guard node, and a call that violates one
raises before anything is computed. Nothing is ever assumed about the values of a tensor.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from umcompress.errors import ModelError
from umcompress.graph.may_be_none import may_be_none

# What gives a tensor, called on one.
_METHODS = frozenset({"reshape", "view", "transpose", "permute", "contiguous", "to", "float", "type_as", "squeeze",
                      "unsqueeze", "flatten", "clone"})  # fmt: skip
_SUMS = ("add", "sub", "mul", "truediv", "iadd", "isub", "imul")


def expect_none(value: object, name: str) -> None:
    """Guard: raise unless the argument is None, as tracing assumed; so are no keyword arguments."""
    if value is not None and not (isinstance(value, dict) and not value):
        raise _assumption_error(name, "None", value)


def expect_given(value: object, name: str) -> None:
    """Guard: raise if the argument is None, which tracing assumed to be given."""
    if value is None:
        raise _assumption_error(name, "given", value)


def expect_flag(value: object, name: str, wanted: bool) -> None:
    """Guard: raise unless the flag has the value that tracing assumed."""
    if bool(value) is not wanted:
        raise _assumption_error(name, repr(wanted), value)


def expect_tensor(value: object, name: str) -> None:
    """Guard: raise unless the argument is a tensor, as tracing assumed."""
    if not isinstance(value, torch.Tensor):
        raise _assumption_error(name, "a tensor", value)


def expect_other_dtype(value: object, name: str, dtype: torch.dtype) -> None:
    """Guard: raise if the tensor has this dtype, which tracing assumed it has not."""
    if isinstance(value, torch.Tensor) and value.dtype == dtype:
        raise ModelError(
            f"run a rewritten block in {dtype}", f"it was traced for other types, and what it does to {name} in this "
            "one was not kept", "load the model as float32 or bfloat16",
        )


def expect_other_device(value: object, name: str, kind: str) -> None:
    """Guard: raise if the tensor is on this kind of device, which tracing assumed it is not."""
    if isinstance(value, torch.Tensor) and value.device.type == kind:
        raise ModelError(
            f"run a rewritten block on {kind}", f"it was traced for other devices, and what it does to {name} on this "
            "one was not kept", "load the model on cpu or cuda",
        )


def expect_dimensions(value: object, name: str, dimensions: int, exactly: bool) -> None:
    """Guard: raise unless the tensor has just so many dimensions, or another number of them, as tracing assumed."""
    if isinstance(value, torch.Tensor) and (value.ndim == dimensions) is not exactly:
        wanted = f"of {dimensions} dimensions" if exactly else f"not of {dimensions} dimensions"
        raise _assumption_error(name, wanted, value)


def expect_length(value: Any, name: str, length: int) -> None:
    """Guard: raise unless a module has given so many values, as tracing assumed."""
    if len(value) != length:
        raise _assumption_error(name, f"{length} values", value)


GUARDS = (
    expect_none, expect_given, expect_flag, expect_tensor, expect_other_dtype, expect_other_device, expect_dimensions,
    expect_length,
)
# Of a block: names of arguments that are given, whatever their defaults (a decoder's states of its encoder).
GIVEN = "umcompress_given"
# And of those that are None, though they have no default (the text of blocks that get it joined to the picture).
ABSENT = "umcompress_absent"
for _guard in GUARDS:
    fx.node.has_side_effect(_guard)


def is_guard(node: fx.Node) -> bool:
    """Whether a node is a guard."""
    return node.op == "call_function" and node.target in GUARDS


def checks_used_value(guard: fx.Node) -> bool:
    """Whether a guard checks an argument of the block, or a value that more than guards use."""
    (checked,) = guard.all_input_nodes
    return checked.op == "placeholder" or any(not is_guard(user) for user in checked.users)


def hoist_guards(graph: fx.Graph) -> None:
    """Move guards of arguments to the start of the graph, before anything is computed."""
    arguments = [node for node in graph.nodes if node.op == "placeholder"]
    for node in list(graph.nodes):
        if is_guard(node) and node.all_input_nodes[0].op == "placeholder":
            arguments[-1].append(node)


def _assumption_error(name: str, wanted: str, value: object) -> ModelError:
    return ModelError(
        f"run a rewritten block with {name} = {type(value).__name__}",
        f"it was traced with {name} {wanted}, and what it does otherwise was not kept",
        "call the model as it is called by default",
    )


class SymbolicAnswers:
    """Symbolic tracing: any check of a proxy raises."""

    def is_none(self, value: object) -> bool:
        if isinstance(value, fx.Proxy):
            if value.node.op == "get_attr":
                return False
            raise fx.proxy.TraceError(f"asks whether {value.node.name} is None")
        return value is None

    def truth(self, proxy: fx.Proxy) -> bool:
        raise fx.proxy.TraceError("symbolically traced variables cannot be used as inputs to control flow")

    def isinstance(self, value: object, kind: Any) -> bool:
        if isinstance(value, fx.Proxy):
            if _is_tensor(value.node):
                return issubclass(torch.Tensor, kind)
            raise fx.proxy.TraceError(f"asks what kind of thing {value.node.name} is")
        return builtins.isinstance(value, kind)

    def table(self) -> Mapping[str, Callable[..., Any]]:
        """The functions that rewritten forwards call, by name."""
        return {"is_none": self.is_none, "isinstance": self.isinstance, "len": len}


def _is_tensor(node: fx.Node) -> bool:
    """Whether the result of a node can only be a tensor."""
    if node.op == "call_method":
        return node.target in _METHODS
    return node.op == "call_function" and getattr(node.target, "__name__", "") in _SUMS


class AssumedAnswers(SymbolicAnswers):
    """Tracing under assumptions: checks are answered by the defaults of arguments, each with a guard."""

    def is_none(self, value: object) -> bool:
        if not isinstance(value, fx.Proxy):
            return value is None
        node = value.node
        if node.op == "get_attr":
            return False
        _refuse_part(value)
        # A call gives something; an argument without a default is given.
        none = node.op == "placeholder" and bool(node.args) and node.args[0] is None
        block: Any = getattr(value.tracer, "root", None)
        none &= node.target not in getattr(block, GIVEN, ())
        none |= node.op == "placeholder" and node.target in getattr(block, ABSENT, ())
        self._guard(value, expect_none if none else expect_given)
        return none

    def truth(self, proxy: fx.Proxy) -> bool:
        node = proxy.node
        if (found := _compared_dtype(node)) is not None:
            asked, dtype = found
            # Only half precision is ever asked for, to clamp what would overflow; nothing here computes in it.
            self._guard(fx.Proxy(asked, proxy.tracer), expect_other_dtype, dtype)
            return node.target is operator.ne
        if (sized := _compared_dimensions(node, getattr(proxy.tracer, "root", None))) is not None:
            # A stream has three dimensions, what modulates it two.
            exactly = sized[1] < 4
            self._guard(fx.Proxy(sized[0], proxy.tracer), expect_dimensions, sized[1], exactly)
            return exactly if node.target is operator.eq else not exactly
        if (placed := _compared_device(node)) is not None:
            self._guard(fx.Proxy(placed[0], proxy.tracer), expect_other_device, placed[1])
            return node.target is operator.ne
        if node.op != "placeholder" or not node.args or not isinstance(node.args[0], (bool, int, type(None))):
            return super().truth(proxy)
        wanted = bool(node.args[0])
        self._guard(proxy, expect_flag, wanted)
        return wanted

    def isinstance(self, value: object, kind: Any) -> bool:
        if not isinstance(value, fx.Proxy):
            return builtins.isinstance(value, kind)
        node = value.node
        if node.op != "placeholder":
            return super().isinstance(value, kind)
        if node.args and not isinstance(node.args[0], type(None)):
            return builtins.isinstance(node.args[0], kind)
        if node.args:
            self._guard(value, expect_none)
            return builtins.isinstance(None, kind)
        self._guard(value, expect_tensor)
        return issubclass(torch.Tensor, kind)

    def length(self, value: Any) -> int:
        """Of what an attention over two streams gives: two."""
        node = value.node if isinstance(value, fx.Proxy) else None
        if node is not None and node.op == "call_module" and node.kwargs.keys() >= _TWO_STREAMS:
            self._guard(value, expect_length, len(_TWO_STREAMS))
            return len(_TWO_STREAMS)
        return len(value)

    def table(self) -> Mapping[str, Callable[..., Any]]:
        return {**super().table(), "len": self.length}

    @staticmethod
    def _guard(proxy: fx.Proxy, guard: Callable[..., None], *more: object) -> None:
        node = proxy.node
        there = [user for user in node.users if user.target is guard]
        if not there:
            proxy.tracer.create_proxy("call_function", guard, (proxy, str(node.target), *more), {})


def _refuse_part(value: fx.Proxy) -> None:
    """Raise where a check concerns a part of a leaf's result that the leaf may return as None."""
    node = value.node
    made, place = node.args if node.target is operator.getitem else (None, None)
    if isinstance(made, fx.Node) and made.target is operator.getitem and _from_first(made.args[1]):
        made = made.args[0]
    if isinstance(made, fx.Node) and made.op == "call_module" and isinstance(place, int):
        block: Any = getattr(value.tracer, "root", None)
        if may_be_none(block.get_submodule(str(made.target)), place):
            raise fx.proxy.TraceError(f"asks whether part {place} of what {made.target} returns is None")


def _from_first(place: object) -> bool:
    """Whether an index is a slice from the start, such as `[:2]`, in which parts keep their positions."""
    return isinstance(place, slice) and place.start in (None, 0) and place.step in (None, 1)


def _compared_dtype(node: fx.Node) -> tuple[fx.Node, torch.dtype] | None:
    """(tensor, dtype) of the comparison `x.dtype == torch.float16`; None for any other node."""
    if node.target not in (operator.eq, operator.ne) or len(node.args) != 2:
        return None
    left, dtype = node.args
    if dtype is not torch.float16 or not isinstance(left, fx.Node) or left.target is not getattr:
        return None
    tensor, attribute = left.args
    return (tensor, torch.float16) if isinstance(tensor, fx.Node) and attribute == "dtype" else None


# What an attention over two streams is called with.
_TWO_STREAMS = {"hidden_states", "encoder_hidden_states"}


def _compared_dimensions(node: fx.Node, block: Any) -> tuple[fx.Node, int] | None:
    """(tensor, number) of the comparison `x.ndim == 4` in a block of diffusers; None for any other node."""
    if node.target not in (operator.eq, operator.ne) or len(node.args) != 2:
        return None
    left, number = node.args
    known = type(block).__module__.startswith("diffusers.")
    if not known or type(number) is not int or not isinstance(left, fx.Node) or left.target is not getattr:
        return None
    tensor, attribute = left.args
    return (tensor, number) if isinstance(tensor, fx.Node) and attribute == "ndim" else None


# Devices that code makes an exception for; nothing here runs on them.
_OTHER_DEVICES = ("mps", "npu", "xla", "neuron")


def _compared_device(node: fx.Node) -> tuple[fx.Node, str] | None:
    """(tensor, kind) of the comparison `x.device.type == "mps"`; None for any other node."""
    if node.target not in (operator.eq, operator.ne) or len(node.args) != 2:
        return None
    left, kind = node.args
    if kind not in _OTHER_DEVICES or not isinstance(left, fx.Node) or left.target is not getattr:
        return None
    device, attribute = left.args
    if attribute != "type" or not isinstance(device, fx.Node) or device.target is not getattr:
        return None
    tensor, attribute = device.args
    return (tensor, str(kind)) if isinstance(tensor, fx.Node) and attribute == "device" else None
