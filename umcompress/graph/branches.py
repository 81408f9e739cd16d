"""Find residual branches: walk back from each output through the adds that close a residual."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import fx, nn

from umcompress.graph.linears import is_matrix
from umcompress.graph.optional_outputs import without_optional_outputs
from umcompress.graph.protocol import RoutedFeedForward, StreamAttention
from umcompress.graph.sites import BranchKind
from umcompress.graph.trace import call_name, is_attention, module_of

_ADDS = {"add", "iadd", "add_", "__add__", "__iadd__"}
_STEP_MODULES = ("Norm", "Dropout", "Identity")
_STEP_CALLS = {"dropout", "contiguous", "to", "float", "getitem"}
_SHAPING = {"view", "reshape"}
_SCALES = {"mul", "imul", "mul_"}


@dataclass(frozen=True)
class Branch:
    """A residual branch: `add` = `stream` + `branch`; `own` are the nodes that nothing but the branch uses.

    Of parallel branches `add` is their sum and `stream` the other one; `outer` is the stream around both, before and
    after. `part`: the deepest module of the block that holds all linears of the branch, or its attention; "" where
    that is the block itself.
    """

    kind: BranchKind
    component: str
    add: fx.Node
    stream: fx.Node
    branch: fx.Node
    own: frozenset[fx.Node]
    leaf: fx.Node | None
    outer: tuple[fx.Node, fx.Node] | None = None
    part: str = ""

    @property
    def before(self) -> fx.Node:
        """The stream that the branch reads."""
        return self.outer[0] if self.outer else self.stream

    @property
    def after(self) -> fx.Node:
        """The stream with everything that was added at once."""
        return self.outer[1] if self.outer else self.add


def find_branches(
    graph: fx.Graph, block: nn.Module, path: str, component_of: Callable[[str], str]
) -> tuple[Branch, ...]:
    """The residual branches of a block, in the order of the graph."""
    above = _ancestors(graph)
    found = {
        node: tuple(_branches(node, stream, branch, above, block, path, component_of))
        for node, (stream, branch) in _added(graph, block, above).items()
    }
    return tuple(branch for node in graph.nodes for branch in found.get(node, ()))


def unknown_additions(graph: fx.Graph, block: nn.Module, branches: Iterable[Branch]) -> Iterator[list[nn.Module]]:
    """Additions to the stream that are no known branch: for each, the modules with tensors in it."""
    above = _ancestors(graph)
    known = {node for branch in branches for node in (branch.add, branch.after)}
    for node, (stream, branch) in _added(graph, block, above).items():
        if node not in known:
            own = (above[branch] | {branch}) - above[stream] - {stream}
            called = [module_of(block, one) for one in graph.nodes if one in own]
            held = [module for module in called if module is not None and any(True for _ in module.parameters())]
            if held:
                yield held


def all_known(graph: fx.Graph, block: nn.Module, branches: Iterable[Branch]) -> bool:
    """Whether a block does nothing to its streams but add these branches: from each output back to an argument."""
    closed = _added(graph, block, _ancestors(graph))
    known = {node for branch in branches for node in (branch.add, branch.after)}
    for number, output in enumerate(_returned(graph)):
        node: fx.Node | None = output
        passed = []
        while node is not None and node.op != "placeholder":
            passed += [node] if node in closed else []
            node = closed[node][0] if node in closed else _step(node, block)
        # What is returned beside a stream, as an attention's weights, is none if nothing was added to it.
        if (node is None and (passed or number == 0)) or not known.issuperset(passed):
            return False
    return True


def _added(
    graph: fx.Graph, block: nn.Module, above: dict[fx.Node, frozenset[fx.Node]]
) -> dict[fx.Node, tuple[fx.Node, fx.Node]]:
    """Map each add that closes a residual to (stream, branch)."""
    found: dict[fx.Node, tuple[fx.Node, fx.Node]] = {}
    for output in _returned(graph):
        node: fx.Node | None = output
        while node is not None:
            operands = _operands(node)
            if operands is None:
                node = _step(node, block)
                continue
            split = _split(operands, above, block)
            if split is None:
                break
            found.setdefault(node, split)
            node = split[0]
    return found


def _returned(graph: fx.Graph) -> list[fx.Node]:
    """Nodes that the block returns in any case."""
    found = [without_optional_outputs(node) for node in graph.output_node().all_input_nodes]
    parts = [part for one in found for part in (one if isinstance(one, tuple | list) else (one,))]
    return [part for part in parts if isinstance(part, fx.Node)]


def _branches(
    add: fx.Node,
    stream: fx.Node,
    branch: fx.Node,
    above: dict[fx.Node, frozenset[fx.Node]],
    block: nn.Module,
    path: str,
    component_of: Callable[[str], str],
) -> Iterator[Branch]:
    """The branches behind one add: one, or two that were added to each other first (parallel blocks)."""
    inner: fx.Node | None = branch
    while inner is not None and _operands(inner) is None:
        inner = _step(inner, block)
    if inner is not None and inner in above[branch] | {branch} and inner not in above[stream] | {stream}:
        terms = _operands(inner)
        assert terms is not None
        if any(one in above[other] for one, other in (terms, terms[::-1])):
            return
        parts = (
            _classify(inner, other, part, above, block, path, component_of, below=stream)
            for part, other in (terms, terms[::-1])
        )
        found = [made for made in parts if made is not None]
        if len({(made.kind, made.component) for made in found}) == len(found):
            yield from (replace(made, outer=(stream, add)) for made in found)
            return
    # A mixture beside a shared expert is one feed-forward.
    made = _classify(add, stream, branch, above, block, path, component_of)
    if made is not None:
        yield made


def _ancestors(graph: fx.Graph) -> dict[fx.Node, frozenset[fx.Node]]:
    above: dict[fx.Node, frozenset[fx.Node]] = {}
    for node in graph.nodes:
        inputs = node.all_input_nodes
        above[node] = frozenset(inputs).union(*(above[i] for i in inputs))
    return above


def _operands(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    if call_name(node) not in _ADDS or len(node.args) != 2:
        return None
    a, b = node.args
    return (a, b) if isinstance(a, fx.Node) and isinstance(b, fx.Node) else None


def _step(node: fx.Node, block: nn.Module) -> fx.Node | None:
    """The operand that carries the stream through a node between two adds."""
    if call_name(node) in _SHAPING and isinstance(node.args[0], fx.Node):
        return node.args[0]
    if call_name(node) == "getitem" and isinstance(node.args[1], tuple) and isinstance(node.args[0], fx.Node):
        # Some of the tokens: `x[:, text_length:]`.
        return node.args[0]
    if call_name(node) in _SCALES and len(node.args) == 2:
        scaled = [a for a in node.args if isinstance(a, fx.Node) and a.op != "get_attr"]
        return scaled[0] if len(scaled) == 1 else None
    # Dropout as a function asks whether the block is in training.
    given = [used for used in node.all_input_nodes if used.op != "get_attr" or used.target != "training"]
    if len(given) != 1:
        return None
    module = module_of(block, node)
    if module is not None:
        passes = any(part in type(module).__name__ for part in _STEP_MODULES)
    else:
        passes = call_name(node) in _STEP_CALLS
    return given[0] if passes else None


def _split(
    operands: tuple[fx.Node, fx.Node], above: dict[fx.Node, frozenset[fx.Node]], block: nn.Module
) -> tuple[fx.Node, fx.Node] | None:
    """(stream, branch): the branch came from the stream, or only adds part the stream from an input."""
    a, b = operands
    for stream, branch in ((a, b), (b, a)):
        if stream in above[branch]:
            return stream, branch
    for stream, branch in ((a, b), (b, a)):
        if _from_input(stream, block) and not _from_input(branch, block):
            return stream, branch
    return None


def _from_input(node: fx.Node, block: nn.Module) -> bool:
    """Whether a node is an argument of the block (possibly normalised, scaled or cast), or a sum that contains one."""
    if node.op == "placeholder":
        return True
    operands = _operands(node)
    if operands is not None:
        return any(_from_input(operand, block) for operand in operands)
    passed = _step(node, block)
    return passed is not None and _from_input(passed, block)


def _classify(
    add: fx.Node,
    stream: fx.Node,
    branch: fx.Node,
    above: dict[fx.Node, frozenset[fx.Node]],
    block: nn.Module,
    path: str,
    component_of: Callable[[str], str],
    below: fx.Node | None = None,
) -> Branch | None:
    """below: the stream, where it is not what the branch is added to."""
    base = stream if below is None else below
    own = (above[branch] | {branch}) - above[base] - {base}
    # A step the walk takes later must not be claimed: a parallel branch does not own the stream's other adds.
    calls = {node: module for node in own if (module := module_of(block, node)) is not None}
    attention = [node for node, module in calls.items() if is_attention(module)]
    if attention:
        leaf = attention[0] if len(attention) == 1 else None
        if leaf is not None and (_read_elsewhere(leaf, own, block) or _holds_feed_forward(leaf, own, above, block)):
            return None
        component = _attention_component(attention, own, block, path, component_of)
        part = str(leaf.target) if leaf is not None else ""
        return Branch("attention", component, add, stream, branch, own, leaf, part=part)
    if any(call_name(node) == "scaled_dot_product_attention" for node in own):
        linears = [node for node, module in calls.items() if isinstance(module, nn.Linear)]
        return Branch("attention", _agreed(linears, path, component_of), add, stream, branch, own, None)
    inner = [node for node, module in calls.items() if is_matrix(module)]
    experts = [node for node, module in calls.items() if is_mixture(module)]
    if any(_gated_by_argument(node) for node in own):
        return None
    if len(inner) >= 2 or experts:
        component = _agreed(inner + experts, path, component_of)
        # What only makes modulations of another argument (adaLN) does not say where the feed-forward is.
        reads = [node for node in (*inner, *experts) if base in above[node]] or [*inner, *experts]
        part = common_module([f"{node.target}." if node in experts else str(node.target) for node in reads])
        return Branch("feed_forward", component, add, stream, branch, own, None, part=part)
    return None


def _read_elsewhere(leaf: fx.Node, own: frozenset[fx.Node], block: nn.Module) -> bool:
    """Whether another module reads what an attention gives besides its stream, and would miss it (RWKV's state)."""
    module = module_of(block, leaf)
    if isinstance(module, StreamAttention) and len(module.stream_components) > 1:
        return False
    parts = [node for node in leaf.users if node not in own and call_name(node) == "getitem"]
    return any(user.op == "call_module" for part in parts for user in part.users)


def _holds_feed_forward(
    leaf: fx.Node, own: frozenset[fx.Node], above: dict[fx.Node, frozenset[fx.Node]], block: nn.Module
) -> bool:
    """Whether what is added holds a feed-forward beside the attention or behind it: neither can go alone."""
    after = [node for node in own if leaf in above[node]]
    held = [module for node in own if (module := module_of(block, node)) is not None]
    if any(is_mixture(module) for module in held):
        return True
    if any(call_name(node) == "cat" for node in after):
        return True
    linears = [node for node in after if is_matrix(module_of(block, node))]
    return any(other in above[node] for node in linears for other in linears)


def _gated_by_argument(node: fx.Node) -> bool:
    """Whether a product has an unchanged argument of the block as a factor (Gemma's per-layer inputs)."""
    return call_name(node) in _SCALES and any(used.op == "placeholder" for used in node.all_input_nodes)


def is_mixture(module: nn.Module) -> bool:
    """Whether a module is a mixture of experts: made by `SplitExperts`, or the model's own."""
    return isinstance(module, RoutedFeedForward) or "Experts" in type(module).__name__


def _attention_component(
    leaves: list[fx.Node],
    own: frozenset[fx.Node],
    block: nn.Module,
    path: str,
    component_of: Callable[[str], str],
) -> str:
    """The component of an attention branch: its stream of a joint attention, else that of the path."""
    components: set[str] = set()
    for leaf in leaves:
        module = module_of(block, leaf)
        if not isinstance(module, StreamAttention):
            components.add(component_of(f"{path}.{leaf.target}"))
        elif len(module.stream_components) == 1:
            components.add(module.stream_components[0])
        else:
            components |= {module.stream_components[i] for i in _outputs_used(leaf, own)}
    return components.pop() if len(components) == 1 else "shared"


def common_module(names: list[str]) -> str:
    """The deepest module path that holds all of `names`."""
    shared: list[str] = []
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _called_in(branch: Branch) -> frozenset[str]:
    """The modules of a branch's part that it calls."""
    targets = (str(node.target) for node in branch.own if node.op == "call_module")
    return frozenset(one for one in targets if one == branch.part or one.startswith(f"{branch.part}."))


def told_apart(branches: Sequence[Branch]) -> list[str]:
    """For each branch the `part` that tells it from others of its kind and component; "" where it needs none.

    What adds to several streams at once is one part. Other attentions are not told apart.
    """
    found = []
    for branch in branches:
        alike = [other for other in branches if (other.kind, other.component) == (branch.kind, branch.component)]
        parts = {other.part for other in alike}
        joint = len(parts) == 1 and len({_called_in(other) for other in alike}) == 1
        split = branch.kind == "feed_forward" and len(parts) == len(alike)
        found.append(branch.part if len(alike) > 1 and (joint or split) else "")
    return found


def _outputs_used(leaf: fx.Node, own: frozenset[fx.Node]) -> Iterator[int]:
    for user in leaf.users:
        if user in own and call_name(user) == "getitem" and isinstance(user.args[1], int):
            yield user.args[1]


def _agreed(nodes: list[fx.Node], path: str, component_of: Callable[[str], str]) -> str:
    components = {component_of(f"{path}.{node.target}") for node in nodes}
    return components.pop() if len(components) == 1 else "shared"
