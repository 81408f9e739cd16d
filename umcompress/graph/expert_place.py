"""Find the nodes of a feed-forward that can be replaced by a mixture of experts, and the path of the new module."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from umcompress.graph.linears import MatrixModule, input_size, is_matrix, output_size
from umcompress.graph.sites import FeedForwardSite
from umcompress.graph.trace import call_name


@dataclass(frozen=True)
class SplitPlace:
    """The path of the module that replaces a feed-forward, and the names of its linears.

    A producer that is named k times gives k equal parts of its rows.
    """

    path: str
    producers: tuple[str, ...]
    consumer: str


@dataclass(frozen=True)
class FeedForwardPart:
    """The nodes of a feed-forward, each once: `entry` is what every producer reads, `between` in the graph's order.

    channels: what the consumer reads of it, `beside` what else it reads, as values side by side.
    """

    entry: fx.Node
    producers: tuple[fx.Node, ...]
    between: tuple[fx.Node, ...]
    consumer: fx.Node
    channels: fx.Node
    beside: tuple[fx.Node, ...] = ()


def find_part(graph: fx.Graph, block: nn.Module, site: FeedForwardSite) -> FeedForwardPart | str:
    """The nodes of a feed-forward in its block's graph; or a sentence that says why no module can replace them."""
    called = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    if (times := called.count(path_in_block(site, site.consumer))) > 1:
        return f"it is called {times} times, once for each stream"
    calls = {str(node.target): node for node in graph.nodes if node.op == "call_module"}
    producers = tuple(calls[path_in_block(site, path)] for path in dict.fromkeys(site.producers))
    consumer = calls[path_in_block(site, site.consumer)]
    if any(node.args[0] is not producers[0].args[0] for node in producers):
        return "its first linears read different values"
    takes, gives = input_size(linear_of(block, producers[0])), output_size(linear_of(block, consumer))
    if takes != gives:
        return f"it takes {takes} values and gives {gives}"
    entry = producers[0].args[0]
    assert isinstance(entry, fx.Node)
    sides = _sides(consumer, producers) if site.shared_consumer else (consumer.all_input_nodes[0], ())
    if sides is None:
        return "what its last linear reads of it could not be told from what else it reads"
    between: set[fx.Node] = set()
    todo = [(consumer, [sides[0]])]
    while todo:
        node, reads = todo.pop()
        for read in reads:
            if read in producers or read in between or (read is entry and _asks_type(node)):
                continue
            if not read.all_input_nodes and (read.op, read.target) != ("get_attr", "training"):
                return f"the function between its linears reads {read.name} too"
            if read is entry:
                return "the function between its linears reads what the first linears read"
            if read.op == "call_module" and block.get_submodule(str(read.target)).state_dict():
                return f"the module {read.target} between its linears holds tensors"
            between.add(read)
            todo.append((read, read.all_input_nodes))
    return FeedForwardPart(entry, producers, tuple(n for n in graph.nodes if n in between), consumer, *sides)


def _sides(consumer: fx.Node, producers: tuple[fx.Node, ...]) -> tuple[fx.Node, tuple[fx.Node, ...]] | None:
    """Of values that a linear reads side by side: the one that is made of the producers, and the others."""
    read = consumer.all_input_nodes[0]
    if call_name(read) != "cat" or len(read.users) != 1:
        return None
    own = [side for side in read.all_input_nodes if not _made_of(side).isdisjoint(producers)]
    others = tuple(side for side in read.all_input_nodes if side not in own)
    return (own[0], others) if len(own) == 1 else None


def _made_of(node: fx.Node) -> set[fx.Node]:
    """A node and all that it is made of."""
    found, todo = {node}, [node]
    while todo:
        new = [read for read in todo.pop().all_input_nodes if read not in found]
        found.update(new)
        todo += new
    return found


def _asks_type(node: fx.Node) -> bool:
    """Whether a node reads only the dtype or device of its last operand, which the linears' outputs share."""
    name = call_name(node)
    return name == "type_as" or (name == "getattr" and node.args[1] in ("dtype", "device"))


def module_path(graph: fx.Graph, block: nn.Module, site: FeedForwardSite, part: FeedForwardPart) -> str:
    """Where the new module goes: in place of the module that holds just these linears, or beside the last."""
    own, last = path_in_block(site, site.path), path_in_block(site, site.consumer)
    module = block.get_submodule(own)
    linears = {id(linear_of(block, node)) for node in (*part.producers, part.consumer)}
    holders = {id(child) for child in module.modules() if any(True for _ in child.parameters(recurse=False))}
    nodes = {*part.producers, *part.between, part.consumer}
    calls = [n for n in graph.nodes if n.op == "call_module" and str(n.target).startswith(f"{own}.")]
    exact = holders <= linears and all(node in nodes for node in calls)
    return own if exact and not is_matrix(module) else f"{last}_experts"


def linear_names(site: FeedForwardSite) -> tuple[str, ...]:
    """Short names of the linears, the consumer's last; whole paths where short names would be equal."""
    paths = [path_in_block(site, path) for path in (*site.producers, site.consumer)]
    short = {path: path.rpartition(".")[2] for path in paths}
    alike = len(set(short.values())) < len(short)
    return tuple(path.replace(".", "_") if alike else short[path] for path in paths)


def linear_of(block: nn.Module, node: fx.Node) -> MatrixModule:
    """The linear that a node calls."""
    linear = block.get_submodule(str(node.target))
    assert is_matrix(linear)
    return linear


def path_in_block(site: FeedForwardSite, path: str) -> str:
    """Strip the block's own path from a module path."""
    return path[len(site.block) + 1 :]


def split_place(graph: fx.Graph, block: nn.Module, site: FeedForwardSite) -> SplitPlace | str:
    """Where the experts of `site` would go; or a sentence that says why it cannot be split."""
    part = find_part(graph, block, site)
    if isinstance(part, str):
        return part
    *producers, consumer = linear_names(site)
    return SplitPlace(f"{site.block}.{module_path(graph, block, site, part)}", tuple(producers), consumer)
