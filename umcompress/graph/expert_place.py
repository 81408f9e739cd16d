"""Which nodes of a block are a feed-forward that can become one module of experts, and where that module goes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from umcompress.graph.linears import Matrix, inputs, is_matrix, outputs
from umcompress.graph.sites import FeedForwardSite
from umcompress.graph.trace import call_name


@dataclass(frozen=True)
class SplitPlace:
    """Where the experts of a feed-forward go: their module's path, and what its linears are called in there.

    A producer that is named k times gives k equal parts of its rows.
    """

    path: str
    producers: tuple[str, ...]
    consumer: str


@dataclass(frozen=True)
class FeedForwardPart:
    """The nodes of a feed-forward, each once: `entry` is what every producer reads, `between` in the graph's order."""

    entry: fx.Node
    producers: tuple[fx.Node, ...]
    between: tuple[fx.Node, ...]
    consumer: fx.Node


def find_part(graph: fx.Graph, block: nn.Module, site: FeedForwardSite) -> FeedForwardPart | str:
    """The part of a block's graph that a site is; or, in words, why it cannot become a module of its own."""
    calls = {str(node.target): node for node in graph.nodes if node.op == "call_module"}
    producers = tuple(calls[inside(site, path)] for path in dict.fromkeys(site.producers))
    consumer = calls[inside(site, site.consumer)]
    if any(node.args[0] is not producers[0].args[0] for node in producers):
        return "its first linears read different values"
    takes, gives = inputs(linear_of(block, producers[0])), outputs(linear_of(block, consumer))
    if takes != gives:
        return f"it takes {takes} values and gives {gives}"
    entry = producers[0].args[0]
    assert isinstance(entry, fx.Node)
    between: set[fx.Node] = set()
    todo = [consumer]
    while todo:
        node = todo.pop()
        for read in node.all_input_nodes:
            if read in producers or read in between or (read is entry and _asks_type(node)):
                continue
            if not read.all_input_nodes and (read.op, read.target) != ("get_attr", "training"):
                return f"the function between its linears reads {read.name} too"
            if read is entry:
                return "the function between its linears reads what the first linears read"
            if read.op == "call_module" and block.get_submodule(str(read.target)).state_dict():
                return f"the module {read.target} between its linears holds tensors"
            between.add(read)
            todo.append(read)
    return FeedForwardPart(entry, producers, tuple(n for n in graph.nodes if n in between), consumer)


def _asks_type(node: fx.Node) -> bool:
    """Whether a node reads only the dtype or device of its last operand: the linears' outputs have the same."""
    name = call_name(node)
    return name == "type_as" or (name == "getattr" and node.args[1] in ("dtype", "device"))


def place_of(graph: fx.Graph, block: nn.Module, site: FeedForwardSite, part: FeedForwardPart) -> str:
    """Where in the block the module goes: for the one that holds just these linears, or beside the last."""
    own, last = inside(site, site.path), inside(site, site.consumer)
    module = block.get_submodule(own)
    linears = {id(linear_of(block, node)) for node in (*part.producers, part.consumer)}
    holders = {id(child) for child in module.modules() if any(True for _ in child.parameters(recurse=False))}
    nodes = {*part.producers, *part.between, part.consumer}
    calls = [n for n in graph.nodes if n.op == "call_module" and str(n.target).startswith(f"{own}.")]
    exact = holders <= linears and all(node in nodes for node in calls)
    return own if exact and not is_matrix(module) else f"{last}_experts"


def linear_names(site: FeedForwardSite) -> tuple[str, ...]:
    """Last parts of the linears' names, the consumer's at the end; whole paths where those are alike."""
    paths = [inside(site, path) for path in (*site.producers, site.consumer)]
    short = {path: path.rpartition(".")[2] for path in paths}
    alike = len(set(short.values())) < len(short)
    return tuple(path.replace(".", "_") if alike else short[path] for path in paths)


def linear_of(block: nn.Module, node: fx.Node) -> Matrix:
    """The linear that a node calls."""
    linear = block.get_submodule(str(node.target))
    assert is_matrix(linear)
    return linear


def inside(site: FeedForwardSite, path: str) -> str:
    """A path of the model as one of the block."""
    return path[len(site.block) + 1 :]


def split_place(graph: fx.Graph, block: nn.Module, site: FeedForwardSite) -> SplitPlace | str:
    """Where the experts of `site` would go; or, in words, why it cannot be split."""
    part = find_part(graph, block, site)
    if isinstance(part, str):
        return part
    *producers, consumer = linear_names(site)
    return SplitPlace(f"{site.block}.{place_of(graph, block, site, part)}", tuple(producers), consumer)
