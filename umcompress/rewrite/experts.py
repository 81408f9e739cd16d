"""The edit SplitExperts: the nodes of a feed-forward become one call of a mixture-of-experts module.

Shapes: H hidden, I inner channels, E experts of m channels, S shared channels. Producers (I, H) become
(E, m, H) and (S, H), the consumer (H, I) becomes (E, H, m) and (H, S). A producer of k parts (k I, H) becomes
(E, k m, H) and (k S, H). Weights of Conv1D are transposed: the new ones are (out, in).
"""

from __future__ import annotations

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

    bias: whether the consumer will have one; None: as it is now.
    """
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
    (last,) = part.consumer.all_input_nodes
    graph.output(copies[last])
    return fx.GraphModule(parts, graph, "Pointwise")


def split(
    graph: fx.Graph, block: nn.Module, site: FeedForwardSite, edit: SplitExperts, tensors: TensorMap
) -> str:
    """Replace a feed-forward by its experts, in block, graph and tensor map; returns the path of the new module.

    The replaced nodes stay in the graph, without users.
    """
    part = find_part(graph, block, site)
    assert not isinstance(part, str)
    place, module = module_path(graph, block, site, part), sparse_module(block, site, part, edit)
    _like_linears(module, linear_of(block, part.producers[0]), linear_of(block, part.consumer))
    values = _values(block, site, module, edit, tensors)
    for path in (*site.producers, site.consumer):
        tensors.forget(path)
    for name, value in values.items():
        tensors.entries[f"{site.block}.{place}.{name}"] = value
    owner, _, name = place.rpartition(".")
    setattr(block.get_submodule(owner), name, module)
    with graph.inserting_before(part.consumer):
        call = graph.call_module(place, (part.entry,))
    part.consumer.replace_all_uses_with(call)
    return place


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
    bias = consumer.bias
    assert bias is None or isinstance(bias, nn.Parameter)
    module.bias = bias


def _values(
    block: nn.Module, site: FeedForwardSite, module: SparseFeedForward, edit: SplitExperts, tensors: TensorMap
) -> dict[str, Expression]:
    """Where each tensor of the module comes from; the router starts as zeros."""
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
            if home == "experts":
                groups = tuple(_rows(expert, edit, parts) for expert in edit.experts)
                made[name] = StackGroups(source, int(last), groups)
            else:
                made[name] = Take(source, int(last), _rows(edit.shared, edit, parts))
    return made


def _rows(channels: tuple[int, ...], edit: SplitExperts, parts: int) -> tuple[int, ...]:
    """The rows of these channels in a linear with so many parts, each of which has all channels."""
    width = len(edit.experts) * edit.width + len(edit.shared)
    return tuple(part * width + channel for part in range(parts) for channel in channels)
