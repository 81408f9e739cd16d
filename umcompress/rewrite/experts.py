"""The edit SplitExperts: a feed-forward's nodes become one call of a module with its channels in stacks.

Shapes: H hidden, I inner channels, E experts of m channels, S shared channels. Producers (I, H) become
(E, m, H) and (S, H), the consumer (H, I) becomes (E, H, m) and (H, S). A producer of k parts (k I, H) becomes
(E, k m, H) and (k S, H). Weights that lie the other way round (Conv1D) are turned: the new ones are (out, in).
"""

from __future__ import annotations

import torch
from torch import fx, nn

from umcompress.documents.plan import SplitExperts
from umcompress.graph.expert_place import FeedForwardPart, find_part, inside, linear_names, linear_of, place_of
from umcompress.graph.linears import Matrix, is_conv1d, outputs
from umcompress.graph.sites import FeedForwardSite
from umcompress.rewrite.nn.experts import ExpertShape, SparseFeedForward
from umcompress.rewrite.tensors import Expression, Flip, Fold, Take, TensorMap, Zeros


def sparse_module(
    block: nn.Module, site: FeedForwardSite, part: FeedForwardPart, edit: SplitExperts, bias: bool | None = None
) -> SparseFeedForward:
    """The module, its parameters on meta. `bias`: whether the consumer will have one (None: as it is now)."""
    *producers, consumer = (linear_of(block, node) for node in (*part.producers, part.consumer))
    names = linear_names(site)
    biases = dict(zip(dict.fromkeys(names[:-1]), (linear.bias is not None for linear in producers), strict=True))
    shape = ExpertShape(
        hidden=outputs(consumer),
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
    """What lies between the linears, as a function of the producers' outputs."""
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
    """Put the experts in place of the feed-forward, in block, graph and tensors; returns where they are.

    The nodes that they replace are left without users.
    """
    part = find_part(graph, block, site)
    assert not isinstance(part, str)
    place, module = place_of(graph, block, site, part), sparse_module(block, site, part, edit)
    _as_before(module, linear_of(block, part.producers[0]), linear_of(block, part.consumer))
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


def _as_before(module: SparseFeedForward, producer: Matrix, consumer: Matrix) -> None:
    """Parameters of the dtype of the linears, trained if they were; the selector never is."""
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
    """Each tensor of the module from those of the linears; the router starts as zeros."""
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
            if leaf == "weight" and is_conv1d(block.get_submodule(inside(site, linears[linear]))):
                source = Flip(source)
            parts = 1 if last else shape.producers.count(linear)
            if home == "experts":
                made[name] = Fold(source, int(last), tuple(_rows(expert, edit, parts) for expert in edit.experts))
            else:
                made[name] = Take(source, int(last), _rows(edit.shared, edit, parts))
    return made


def _rows(channels: tuple[int, ...], edit: SplitExperts, parts: int) -> tuple[int, ...]:
    """Where these channels lie in a linear of so many parts, each of which has all channels."""
    width = len(edit.experts) * edit.width + len(edit.shared)
    return tuple(part * width + channel for part in range(parts) for channel in channels)
