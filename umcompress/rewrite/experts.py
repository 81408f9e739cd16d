"""The edit SplitExperts: the nodes of a feed-forward become one call of a mixture-of-experts module.

Shapes: H hidden, I inner channels, E experts of m channels, S shared channels. Producers (I, H) become
(E, m, H) and (S, H), the consumer (H, I) becomes (E, H, m) and (H, S). A producer of k parts (k I, H) becomes
(E, k m, H) and (k S, H). Weights of Conv1D are transposed: the new ones are (out, in).

A consumer that reads an attention's heads beside the channels goes on reading these, and the experts are added to it.
"""

from __future__ import annotations

import operator

import torch
from torch import fx, nn

from umcompress.documents.plan import SplitExperts
from umcompress.graph.expert_place import (
    FeedForwardPart,
    find_part,
    linear_names,
    linear_of,
    module_path,
    path_in_block,
)
from umcompress.graph.linears import MatrixModule, is_conv1d, output_size
from umcompress.graph.sites import FeedForwardSite
from umcompress.rewrite.nn.experts import ExpertShape, SparseFeedForward
from umcompress.rewrite.tensors import Expression, StackGroups, Take, TensorMap, Transpose, Zeros


def sparse_module(
    block: nn.Module, site: FeedForwardSite, part: FeedForwardPart, edit: SplitExperts, bias: bool | None = None
) -> SparseFeedForward:
    """The mixture-of-experts module, its parameters on the meta device.

    bias: whether the consumer will have one; None: as it is now. One that stays keeps its own.
    """
    bias = False if site.shared_consumer else bias
    *producers, consumer = (linear_of(block, node) for node in (*part.producers, part.consumer))
    names = linear_names(site)
    biases = dict(zip(dict.fromkeys(names[:-1]), (linear.bias is not None for linear in producers), strict=True))
    shape = ExpertShape(
        hidden=output_size(consumer),
        experts=len(edit.experts),
        active=edit.active,
        width=edit.width,
        producers=names[:-1],
        consumer=names[-1],
        producer_bias=tuple(biases[name] for name in names[:-1]),
        consumer_bias=consumer.bias is not None if bias is None else bias,
        shared_width=len(edit.shared),
        weighting=edit.weighting,
        selector=edit.selector,
    )
    with torch.device("meta"):
        return SparseFeedForward(shape, _pointwise(block, part)).train(block.training)


def _pointwise(block: nn.Module, part: FeedForwardPart) -> fx.GraphModule:
    """The computation between the linears, as a function of the producers' outputs."""
    graph, parts = fx.Graph(), dict[str, object]()
    copies = {node: graph.placeholder(f"channels_{i}") for i, node in enumerate(part.producers)}
    copies[part.entry] = copies[part.producers[0]]
    for node in part.between:
        made = copies[node] = graph.node_copy(node, copies.__getitem__)
        if node.op == "call_module":
            made.target = f"f{len(parts)}"
            parts[made.target] = block.get_submodule(str(node.target))
        elif node.op == "get_attr":
            parts[str(node.target)] = getattr(block, str(node.target))
    graph.output(copies[part.channels])
    return fx.GraphModule(parts, graph, "Pointwise")


def split(
    graph: fx.Graph, block: nn.Module, site: FeedForwardSite, edit: SplitExperts, tensors: TensorMap,
    columns: tuple[int, ...],
) -> str:
    """Replace a feed-forward by its experts, in block, graph and tensor map; returns the path of the new module.

    The replaced nodes stay in the graph, without users.  columns: where the consumer reads the channels.
    """  # fmt: skip
    part = find_part(graph, block, site)
    assert not isinstance(part, str)
    place, module = module_path(graph, block, site, part), sparse_module(block, site, part, edit)
    _like_linears(module, linear_of(block, part.producers[0]), linear_of(block, part.consumer))
    values = _values(block, site, module, edit, tensors, columns)
    for path in (*site.producers, *(() if site.shared_consumer else (site.consumer,))):
        tensors.forget(path)
    for name, value in values.items():
        tensors.entries[f"{site.block}.{place}.{name}"] = value
    owner, _, name = place.rpartition(".")
    setattr(block.get_submodule(owner), name, module)
    with graph.inserting_before(part.consumer):
        call = graph.call_module(place, (part.entry,))
    if site.shared_consumer:
        _add_beside(graph, part, call)
    else:
        part.consumer.replace_all_uses_with(call)
    return place


def _add_beside(graph: fx.Graph, part: FeedForwardPart, experts: fx.Node) -> None:
    """The consumer reads only what is beside the channels, and the experts are added to what it gives."""
    whole = part.consumer.all_input_nodes[0]
    with graph.inserting_before(part.consumer):
        axis = whole.args[1] if len(whole.args) > 1 else whole.kwargs["dim"]
        several = len(part.beside) > 1
        rest = graph.call_function(torch.cat, (list(part.beside), axis)) if several else part.beside[0]
    part.consumer.replace_input_with(whole, rest)
    with graph.inserting_after(part.consumer):
        total = graph.call_function(operator.add, (part.consumer, experts))
    part.consumer.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)


def _like_linears(module: SparseFeedForward, producer: MatrixModule, consumer: MatrixModule) -> None:
    """Parameters with the dtype and requires_grad of the linears; the selector is never trained."""
    last = module.shape.consumer
    for name, parameter in list(module.named_parameters()):
        path, _, leaf = name.rpartition(".")
        source = (consumer if path.endswith(f".{last}") else producer).weight
        trains = source.requires_grad and path != "selector"
        data = torch.empty_like(parameter, dtype=source.dtype)
        setattr(module.get_submodule(path), leaf, nn.Parameter(data, requires_grad=trains))
    # Not moved into a stack: the parameter goes on as it is.
    bias = consumer.bias if module.shape.consumer_bias else None
    assert bias is None or isinstance(bias, nn.Parameter)
    module.bias = bias


def _values(
    block: nn.Module, site: FeedForwardSite, module: SparseFeedForward, edit: SplitExperts, tensors: TensorMap,
    columns: tuple[int, ...],
) -> dict[str, Expression]:
    """Where each tensor of the module comes from; the router starts as zeros."""  # fmt: skip
    parameters, old, shape = dict(module.named_parameters()), tensors.entries, module.shape
    linears = dict(zip((*shape.producers, shape.consumer), (*site.producers, site.consumer), strict=True))
    made: dict[str, Expression] = {}
    for name, parameter in parameters.items():
        home, _, rest = name.partition(".")
        if home in ("gate", "selector"):
            made[name] = Zeros(tuple(parameter.shape), parameter.dtype)
        elif home == "bias":
            made[name] = old[f"{site.consumer}.bias"]
        else:
            linear, leaf = rest.rsplit(".", 1)
            source, last = old[f"{linears[linear]}.{leaf}"], linear == shape.consumer
            if leaf == "weight" and is_conv1d(block.get_submodule(path_in_block(site, linears[linear]))):
                source = Transpose(source)
            parts = 1 if last else shape.producers.count(linear)
            chosen = [_rows(some, edit, parts) for some in (edit.shared, *edit.experts)]
            shared, *groups = (tuple(columns[row] for row in rows) if last else rows for rows in chosen)
            made[name] = (
                StackGroups(source, int(last), tuple(groups)) if home == "experts" else Take(source, int(last), shared)
            )
    return made


def _rows(channels: tuple[int, ...], edit: SplitExperts, parts: int) -> tuple[int, ...]:
    """The rows of these channels in a linear with so many parts, each of which has all channels."""
    width = len(edit.experts) * edit.width + len(edit.shared)
    return tuple(part * width + channel for part in range(parts) for channel in channels)
