"""Attentions of diffusers as `StreamAttention`: their heads can be cut.

What a module computes with its linears is in a processor, which several classes share. All of diffusers' own take the
number of heads from the module or from the sizes of what the linears give; what else depends on heads is a tensor with
an entry for each, and a module that has a tensor of which nothing is known is left alone.

Streams of text and picture that meet in one attention have their own linears for the same heads: they are one site.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

from torch import nn

from umcompress.graph.linears import input_size, is_matrix, output_size
from umcompress.graph.lower import original_class, stand_for
from umcompress.graph.protocol import JoinedStream, StreamLayout

Layout: TypeAlias = StreamLayout | str
OWN = ("to_q", "to_k", "to_v")
ADDED = JoinedStream("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
# Queries, keys, values and both halves of a feed-forward from one linear; one other reads heads and feed-forward.
FUSED = "to_qkv_mlp_proj"
NORMS = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")
# Under which a module counts heads, and under which the channels of all of them.
COUNTS, WIDTHS = ("heads", "kv_heads"), ("inner_dim", "inner_kv_dim", "kv_inner_dim")


class HeadsOfDiffusers:
    """Mixin that gives an attention class of diffusers the methods of `StreamAttention`."""

    stream_components: tuple[str, ...]
    layer_idx: int | None = None

    def stream(self, component: str) -> StreamLayout | None:
        """Read off the linears as they are now."""
        assert isinstance(self, nn.Module)
        found = layout_of(self) if component in self.stream_components else None
        return found if isinstance(found, StreamLayout) else None

    def keep_heads(
        self, component: str, key_value_groups: tuple[int, ...] | None, query_heads: tuple[int, ...] | None
    ) -> None:
        """Update what the processors read; the linears have been narrowed already."""
        module: Any = self
        # Queries' linears are already of the new size, and so says the head's width what is left.
        width = head_width(module)
        heads, groups = _rows(module, "to_q") // width, _rows(module, "to_k") // width
        if key_value_groups is not None and FUSED in dict(module.named_children()):
            heads = groups = len(key_value_groups)
        for names, of_queries, of_keys in ((COUNTS, heads, groups), (WIDTHS, heads * width, groups * width)):
            for name in names:
                if type(getattr(module, name, None)) is int:
                    setattr(module, name, of_keys if "kv" in name else of_queries)

    def drop_stream(self, component: str) -> None:
        """Its streams are one site: it is dropped as a whole."""


def add_head_protocol(model: nn.Module, path: str, component_of: Callable[[str], str]) -> None:
    """Give the attentions in the stack at `path` the methods of the protocol, where their heads are known."""
    for name, module in model.get_submodule(path).named_modules(prefix=path):
        if isinstance(layout_of(module), StreamLayout) and not isinstance(module, HeadsOfDiffusers):
            kind: Any = type(module)
            module.__class__ = _with_stream(kind, component_of(name), head_width(module))


@cache
def _with_stream(cls: Any, component: str, width: int) -> Any:
    # Of the class and not of the module: a module has the settings that diffusers gives it, and no other.
    space = {"__module__": cls.__module__, "stream_components": (component,), "width_of_a_head": width}
    made = type(cls.__name__, (HeadsOfDiffusers, cls), space)
    stand_for(made, cls)
    return made


def head_width(module: nn.Module) -> int:
    """The channels of a head."""
    known = getattr(type(module), "width_of_a_head", None) or getattr(module, "head_dim", None)
    heads = getattr(module, "heads", 0)
    return int(known or (_rows(module, "to_q") // heads if heads else 0))


def layout_of(module: nn.Module) -> Layout:
    """The layout of the heads of an attention; or, as a sentence, why it is not known."""
    children = dict(module.named_children())
    if not str(original_class(module).__module__).startswith("diffusers.") or not hasattr(module, "processor"):
        return "it is no attention of diffusers"
    if any(True for _ in module.parameters(recurse=False)):
        return "it has parameters of its own besides its linears"
    fused = is_matrix(children.get(FUSED))
    if not fused and not all(is_matrix(children.get(name)) for name in OWN):
        return "queries, keys and values are made by linears that are laid out otherwise"
    width, output = head_width(module), _output(module)
    if not width:
        return "it does not say how many heads it has"
    found = _fused_layout(module, width, output) if fused else _own_layout(module, width, output)
    return found if isinstance(found, str) else _with_norms(module, found)


def why_no_channels(module: nn.Module) -> str:
    """Of an attention with a feed-forward in it: why only its heads can be cut."""
    if not is_matrix(dict(module.named_children()).get(FUSED)):
        return ""
    kind = original_class(module).__name__
    return f"{FUSED} of {kind} makes the channels of the feed-forward together with queries, keys and values"


def _own_layout(module: nn.Module, width: int, output: str) -> Layout:
    queries, keys = _rows(module, "to_q"), _rows(module, "to_k")
    children = dict(module.named_children())
    joined = JoinedStream(*(name if is_matrix(children.get(name)) else "" for name in _names(ADDED)))
    of_queries = [_rows(module, name) for name in ("to_q", joined.query) if name]
    of_keys = [_rows(module, name) for name in ("to_k", "to_v", joined.key, joined.value) if name]
    read = [input_size(module.get_submodule(name)) for name in (output, joined.output) if name]
    if {*of_queries, *read} != {queries} or set(of_keys) != {keys} or queries % keys or keys % width:
        return "the sizes of its linears do not fit heads of one width"
    return StreamLayout(
        *OWN, output, (), keys // width, queries // keys, width, joined=(joined,) if any(_names(joined)) else ()
    )


def _fused_layout(module: Any, width: int, output: str) -> Layout:
    inner, rows = module.inner_dim, _rows(module, FUSED)
    if not output or inner % width or rows < 3 * inner or input_size(module.get_submodule(output)) < inner:
        return "the sizes of its linears do not fit heads of one width"
    return StreamLayout(
        FUSED, FUSED, FUSED, output, (), inner // width, 1, width, key_start=inner, value_start=2 * inner,
        rows_behind=rows - 3 * inner,
    )  # fmt: skip


def _with_norms(module: nn.Module, layout: StreamLayout) -> Layout:
    """The layout with its norms; or, as a sentence, what else in the module depends on the heads."""
    streams = [name for joined in layout.joined for name in _names(joined)]
    known = {layout.query, layout.key, layout.value, layout.output.partition(".")[0], *streams}
    norms = []
    for name, child in module.named_children():
        weights = list(child.parameters())
        if name in known or not weights:
            continue
        if name not in NORMS:
            return f"it has tensors in {name}, of which nothing is known"
        if any(weight.shape != (layout.head_dim,) for weight in weights):
            return f"{name} normalises over all heads at once"
        norms.append(name)
    return StreamLayout(**{**vars(layout), "norms": tuple(norms)})


def _output(module: nn.Module) -> str:
    """The linear that reads the heads: by itself, or followed by dropout; "" where it is outside."""
    last = getattr(module, "to_out", None)
    if isinstance(last, nn.ModuleList) and len(last) and is_matrix(last[0]):
        return "to_out.0"
    return "to_out" if is_matrix(last) else ""


def _names(stream: JoinedStream) -> tuple[str, str, str, str]:
    return stream.query, stream.key, stream.value, stream.output


def _rows(module: nn.Module, name: str) -> int:
    linear = getattr(module, name, None)
    return output_size(linear) if is_matrix(linear) else 0
