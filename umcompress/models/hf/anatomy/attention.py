"""Attentions of transformers as `StreamAttention`: one stream, with the usual layout of heads.

A module is recognised by its children and numbers, whatever its class, and only where all of them are known: an
unknown parameter may have an entry for each head, which a cut would have to select. Layouts are read off the linears as
they are now.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, Literal, TypeAlias

from torch import nn

from umcompress.graph.linears import input_size, is_matrix, output_size
from umcompress.graph.protocol import StreamLayout
from umcompress.graph.trace import is_attention
from umcompress.models.hf.anatomy import alibi
from umcompress.models.hf.anatomy.known_attentions import (
    FUSED,
    GROUPS,
    HEADS,
    KEY,
    NORMS,
    OUTPUT,
    QUERY,
    VALUE,
    VALUES_FIRST,
)

Layout: TypeAlias = StreamLayout | str
_ODD_SIZES = "the sizes of its linears do not fit heads of one width"


class SingleStreamAttention:
    """Mixin that gives an attention class of transformers the methods of `StreamAttention`."""

    stream_components: tuple[str, ...]
    layer_idx: int | None = None

    def stream(self, component: str) -> StreamLayout | None:
        found = layout_of(_module(self)) if component in self.stream_components else None
        return found if isinstance(found, StreamLayout) else None

    def keep_heads(
        self, component: str, key_value_groups: tuple[int, ...] | None, query_heads: tuple[int, ...] | None
    ) -> None:
        """Update head counts wherever the forward reads them; the linears have been narrowed already."""
        module: Any = _module(self)
        before = module.umcompress_heads
        groups = len(key_value_groups) if key_value_groups is not None else before[1]
        heads = len(query_heads) if query_heads is not None else before[0] // before[1] * groups
        module.umcompress_heads = (heads, groups)
        if query_heads is None:
            per = before[0] // before[1]
            query_heads = tuple(group * per + j for group in key_value_groups or () for j in range(per))
        alibi.record_kept_heads(module, before[0], query_heads)
        head_dim = _head_dim(module)
        numbers = dict.fromkeys(HEADS, heads) | dict.fromkeys(GROUPS, groups)
        numbers |= dict.fromkeys(("embed_dim", "split_size"), heads * head_dim)
        numbers["num_key_value_groups"], numbers["kv_dim"] = heads // groups, groups * head_dim
        kind: Any = type(module)
        if not known_code(kind) or kind.__name__ in FUSED:
            # Code of the model's own may call the width of all heads anything: `reshape(b, t, self.hidden_size)`;
            # what splits the output of one linear calls it by any name, too.
            own = {name: value for name, value in vars(module).items() if type(value) is int}
            whole = [name for name, value in own.items() if value == before[0] * head_dim]
            numbers = {name: heads * head_dim for name in whole if f"self.{name}" in source_of(kind)} | numbers
        for name, number in numbers.items():
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, number)
        if reads_config(kind):
            module.config = copy.copy(module.config)
            module.config.num_attention_heads, module.config.num_key_value_heads = heads, groups

    def drop_stream(self, component: str) -> None:
        """With its only stream the attention is dropped as a whole."""


def add_head_protocol(model: nn.Module, path: str, component_of: Callable[[str], str]) -> None:
    """Give the attentions in the stack at `path` the methods of the protocol, where their heads are known.

    Their class is replaced by a subclass with the mixin: weights, hooks and state-dict names stay as they are.
    """
    for name, module in model.get_submodule(path).named_modules(prefix=path):
        if not is_attention(module) or isinstance(module, SingleStreamAttention):
            continue
        layout = layout_of(module)
        if isinstance(layout, StreamLayout):
            known: Any = module
            known.umcompress_heads = (layout.query_heads, layout.key_value_groups)
            known.stream_components = (component_of(name),)
            kind: Any = type(module)
            module.__class__ = _with_stream(kind)


def layout_of(module: nn.Module) -> Layout:
    """The layout of the heads of an attention; or, as a sentence, why it is not known."""
    children = dict(module.named_children())
    output = next((name for name in OUTPUT if is_matrix(children.get(name))), None)
    head_dim, (fused, bundles) = _head_dim(module), FUSED.get(_class_name(module), ("", 1))
    if head_dim is None:
        if any("relative_attention_bias" in name for name in vars(module)):
            return "each of its heads has a bias of positions, which is not cut with it"
        return "it does not say how wide a head is"
    kind: Any = type(module)
    if known_code(kind) and reshapes_to_input_width(kind):
        return "it gives its heads' output the shape of its input"
    if output is None:
        return "its output projection is elsewhere"
    if is_matrix(children.get(fused)) and (bundles == 1 or known_code(kind)):
        made = _fused_layout(module, fused, output, head_dim, bundles)
        return made if isinstance(made, str) else _with_norms(module, made, head_dim)
    names = [next((n for n in known if is_matrix(children.get(n))), None) for known in (QUERY, KEY, VALUE)]
    query, key, value = names
    if query is None or key is None or value is None:
        return "queries, keys and values are made by linears that are laid out otherwise"
    sizes = [output_size(children[name]) for name in (query, key, value)]
    width = input_size(children[output])
    gated = sizes[0] == 2 * width and makes_gates(kind)
    if any(size % head_dim for size in sizes) or sizes[1] != sizes[2] or not (gated or sizes[0] == width):
        return _ODD_SIZES
    groups = sizes[1] // head_dim
    found = StreamLayout(
        query, key, value, output, (), groups, width // head_dim // groups, head_dim,
        query_rows=2 * head_dim if gated else 0,
    )  # fmt: skip
    return _with_norms(module, found, head_dim)


def _fused_layout(module: nn.Module, name: str, output: str, head_dim: int, bundles: int) -> Layout:
    """The layout of one linear for all three; rows of a bundle are its queries, then its keys, then its values."""
    children = dict(module.named_children())
    width = input_size(children[output])
    heads, groups = width // head_dim, (output_size(children[name]) - width) // 2 // head_dim
    whole = (heads + 2 * groups) * head_dim == output_size(children[name]) and heads * head_dim == width
    if not whole or groups == 0 or heads % groups or groups % (bundles or groups):
        return _ODD_SIZES
    size = groups // (bundles or groups)
    starts = [size * heads // groups * head_dim, size * (heads // groups + 1) * head_dim]
    key, value = reversed(starts) if _class_name(module) in VALUES_FIRST else starts
    return StreamLayout(
        name, name, name, output, (), groups, heads // groups, head_dim, key_start=key, value_start=value,
        bundles=bundles,
    )  # fmt: skip


def _with_norms(module: nn.Module, layout: StreamLayout, head_dim: int) -> Layout:
    """The layout with its norms; or, as a sentence, what else in the module depends on the number of heads."""
    known = {layout.query, layout.key, layout.value, layout.output}
    by_head: list[tuple[str, Literal["query", "key"]]] = []
    norm_lists: list[tuple[str, Literal["query", "key"]]] = []
    shared: list[str] = []
    if any(True for _ in module.parameters(recurse=False)):
        return "it has parameters of its own besides its linears"
    buffers = () if known_code(type(module)) else module.buffers(recurse=False)
    if any(layout.query_heads in buffer.shape for buffer in buffers):
        return "it has a buffer of its own with something for each head"
    for name, child in module.named_children():
        kind = next((kind for norm, kind in NORMS if norm == name), None)
        weights = list(child.parameters())
        if name in known or not weights:
            continue
        if kind is None:
            return f"it has tensors in {name}, of which nothing is known"
        heads = layout.query_heads if kind == "query" else layout.key_value_groups
        if lists := [part for part in child.modules() if isinstance(part, nn.ModuleList)]:
            if not _one_for_each(child, lists, heads, head_dim):
                return f"the norms in {name} are not one for each head"
            norm_lists.append((next(path for path, part in module.named_modules() if part is lists[0]), kind))
        elif all(weight.shape == (head_dim,) for weight in weights):
            shared.append(name)
        elif all(weight.ndim == 2 and weight.shape == (heads, head_dim) for weight in weights):
            by_head.append((name, kind))
        else:
            return f"{name} normalises over all heads at once"
    return replace(layout, norms=tuple(shared), head_norms=tuple(by_head), norm_lists=tuple(norm_lists))


def _one_for_each(norm: nn.Module, lists: list[nn.ModuleList], heads: int, head_dim: int) -> bool:
    """Whether all tensors of a norm are in one list of modules, of which each head has one (StableLM)."""
    inside = {id(weight) for part in lists[0].children() for weight in part.parameters()}
    weights = list(norm.parameters())
    fits = all(id(weight) in inside and weight.shape == (head_dim,) for weight in weights)
    return len(lists) == 1 and len(lists[0]) == heads and fits


@cache
def _with_stream(cls: Any) -> Any:
    space = {"__module__": cls.__module__}
    # Code that comes with a model may call anything so: only classes of transformers are wrapped.
    forward = alibi.with_own_slopes(cls.__name__, cls.forward) if known_code(cls) else None
    return type(cls.__name__, (SingleStreamAttention, cls), space if forward is None else space | {"forward": forward})


@cache
def reads_config(cls: Any) -> bool:
    """Whether the forward takes head counts from the configuration, which all layers share."""
    return "config.num_" in source_of(cls)


@cache
def makes_gates(cls: Any) -> bool:
    """Whether the query linear makes queries and gates, head by head (Qwen3-Next)."""
    return known_code(cls) and "-1, self.head_dim * 2), 2, dim=-1" in source_of(cls)


@cache
def reshapes_to_input_width(cls: Any) -> bool:
    """Whether the forward reshapes the heads' output to the width of its input, which kept heads do not fill."""
    taken = re.search(r"\w+, \w+, (\w{2,}) = hidden_states\.(size\(\)|shape)", source_of(cls))
    return taken is not None and re.search(rf"(view|reshape)\([^)]*\b{taken[1]}\)", source_of(cls)) is not None


@cache
def source_of(cls: Any) -> str:
    """The text of a forward."""
    forward: Any = inspect.unwrap(cls.forward)
    return inspect.getsource(forward)


def known_code(cls: Any) -> bool:
    """Whether a class is one of transformers, and does not come with a model."""
    return str(cls.__module__).startswith("transformers.")


def _class_name(module: nn.Module) -> str:
    return type(module).__name__


def _head_dim(module: nn.Module) -> Any:
    """The width of a head, where the module says it."""
    found = getattr(module, "head_dim", None) or getattr(module, "head_size", None)
    return found if isinstance(found, int) and found > 0 else None


def _module(stream: SingleStreamAttention) -> nn.Module:
    assert isinstance(stream, nn.Module)
    return stream
