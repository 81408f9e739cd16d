"""Sizes and multiply-accumulates of a model, measured by running its tasks.

Which parameters a task touches and how much it multiplies are read off one pass of a sample's tokens, so that no
formula has to know the architecture.  On the meta device the same run costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from umcompress.checkpoint.layout import tied_names
from umcompress.documents.base import Component, Task
from umcompress.documents.report import Size
from umcompress.errors import UncountedError
from umcompress.graph.protocol import RoutedFeedForward, is_routed
from umcompress.models.chosen_experts import ChosenExperts
from umcompress.models.equal_blocks import EqualBlocks, equal_blocks
from umcompress.models.family import Family
from umcompress.models.product_counter import ProductCounter
from umcompress.models.runner import Runner

# Names of stacked parameters of experts -> how many of how many experts a token uses.
Shares = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Weight:
    """A model's sizes: numbers of parameters, bytes as loaded, multiply-accumulates a token by task.

    reads: the names of the parameters that each task's tokens went through.
    """

    parameters: Size
    bytes: Size
    macs_per_token: dict[Task, int]
    reads: dict[Task, frozenset[str]]


def weigh(model: nn.Module, family: Family, runner: Runner) -> Weight:
    """Count everything.  Of a task: the parameters of the modules that its tokens go through; of experts,
    as many as one token uses.

    A token is one row that goes through the network once: text, image patch or latent, in one step and one guidance
    branch; the vision tower's work is spread over them. A task whose work cannot be known without values is left out.
    """
    touched: dict[Task, set[str]] = {}
    macs: dict[Task, int] = {}
    shares = _experts(model)
    skeleton = all(tensor.is_meta for tensor in model.parameters())
    groups = equal_blocks(model) if skeleton else {}
    for task in runner.tasks:
        names, hooks = _watch(model, shares)
        counter, operations = _counter(skeleton)
        routed = _Routed(operations)
        hooks += routed.watch(model)

        def work(operations: Callable[[], int] = operations, routed: _Routed = routed) -> float:
            return float(operations() / 2 + routed.correction)

        equal = EqualBlocks(groups, work)
        try:
            once = equal.counted_once(model) if skeleton else nullcontext()
            chosen = ChosenExperts(model, shares, names)
            with _without_gradients(model), chosen, counter, sdpa_kernel(SDPBackend.MATH), once:
                tokens = runner.pass_tokens(task)
        except UncountedError:
            continue
        finally:
            for hook in hooks:
                hook.remove()
        further = equal.further_names(names)
        shares |= {name: shares[one] for name, one in further.items() if one in shares}
        touched[task] = names | further.keys()
        macs[task] = round((work() + equal.extra) / tokens)
    return Weight(
        _size(model, family, touched, shares, lambda tensor: tensor.numel()),
        _size(model, family, touched, shares, lambda tensor: tensor.numel() * tensor.element_size()),
        macs,
        {task: frozenset(names) for task, names in touched.items()},
    )


def _counter(skeleton: bool) -> tuple[AbstractContextManager[object], Callable[[], int]]:
    """Counts the operations of what runs inside; how many there were so far.

    Fused attention kernels are not known to it, so they are run as matrix products; grouped products are said to it.
    """
    if skeleton:
        quick = ProductCounter(_grouped_products())
        return quick, lambda: quick.operations
    counter = FlopCounterMode(display=False, custom_mapping=_grouped_products())
    return counter, counter.get_total_flops


def read_by(model: nn.Module, runner: Runner, task: Task) -> frozenset[str]:
    """Names of the parameters whose own module a token of the task goes through."""
    with called_in(model) as names, torch.no_grad():
        runner.pass_tokens(task)
    return frozenset(names)


@contextmanager
def called_in(model: nn.Module) -> Iterator[set[str]]:
    """Names of the parameters whose own module receives a token inside, filled as it goes."""
    names, hooks = _watch(model, _experts(model))
    try:
        yield names
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """The counter wants to know what made a tensor that a module is given, and of a view of a parameter nothing did."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _grouped_products() -> dict[Any, Callable[..., int]]:
    """What transformers runs mixtures with, (N, K) rows by (E, K, M) experts, -> floating-point operations."""

    def products(rows: Sequence[int], experts: Sequence[int], *_: object, **__: object) -> int:
        return 2 * rows[0] * rows[1] * experts[-1]

    own = getattr(torch.ops.transformers, "grouped_mm_fallback", None)
    return dict.fromkeys((torch.ops.aten._grouped_mm, *([own] if own else [])), products)


def _watch(model: nn.Module, shares: Shares) -> tuple[set[str], list[torch.utils.hooks.RemovableHandle]]:
    """Names of parameters whose own module received a token, filled while the hooks are on.

    So is `shares`, with those of experts that are called with the numbers of the chosen ones.
    """
    touched: set[str] = set()
    hooks = []
    # Experts are run by the module that routes to them, which need not call their own modules.
    routed = tuple(f"{path}." for path, module in model.named_modules() if is_routed(module))
    for path, module in model.named_modules():
        whole = is_routed(module)
        own = [f"{path}.{name}" if path else name for name, _ in module.named_parameters(recurse=whole)]
        if not own or path.startswith(routed):
            continue

        def note(called: nn.Module, inputs: tuple[object, ...], own: list[str] = own) -> None:
            if any(isinstance(value, Tensor) and value.numel() for value in inputs):
                touched.update(own)
            shares.update(zip(own, _chosen(called, inputs), strict=False))

        hooks.append(module.register_forward_pre_hook(note))
    return touched, hooks


def _chosen(module: nn.Module, inputs: tuple[object, ...]) -> list[tuple[int, int]]:
    """Of each own parameter how many of how many experts a token uses, as a mixture of transformers is called: rows
    (T, H), the numbers of the experts (T, K), their weights.  The stacked weights are its own, experts first; some may
    have room for experts that compute nothing, so that a token uses K at most.  Nothing for any other module.
    """
    own = list(module.parameters(recurse=False))
    index = inputs[1] if len(inputs) > 2 else None
    if not isinstance(index, Tensor) or index.ndim != 2 or index.is_floating_point():
        return []
    counts = [parameter.shape[0] for parameter in own if parameter.ndim]
    experts = {parameter.shape[0] for parameter in own if parameter.ndim > 2}
    if not experts or len(counts) < len(own) or not experts.issuperset(counts) or index.shape[1] > min(experts):
        return []
    return [(index.shape[1], count) for count in counts]


def _size(
    model: nn.Module, family: Family, touched: dict[Task, set[str]], shares: Shares, count: Callable[[Tensor], int]
) -> Size:
    counts = {name: count(parameter) for name, parameter in model.named_parameters()}
    # Of weights that are tied only one name is counted.
    of_experts = {name: share for name, share in shares.items() if name in counts}
    at_work = counts | {name: counts[name] * active // of for name, (active, of) in of_experts.items()}
    tied = tied_names(model)
    by_component: dict[Component, int] = {}
    for name, value in counts.items():
        component = family.component_of(name)
        by_component[component] = by_component.get(component, 0) + value
    return Size(
        total=sum(counts.values()),
        active={
            task: sum(at_work[name] for name in {tied.get(name, name) for name in names})
            for task, names in touched.items()
        },
        by_component=by_component,
    )


def _experts(model: nn.Module) -> Shares:
    """Each stacked parameter of experts of ours -> how many of how many a token uses."""
    shares: Shares = {}
    for path, module in model.named_modules():
        if is_routed(module):
            start, routed = f"{path}." if path else "", cast(RoutedFeedForward, module)
            names = (start + name for name, _ in module.named_parameters() if name.startswith("experts."))
            shares |= dict.fromkeys(names, (routed.shape.active, routed.shape.experts))
    return shares


class _Routed:
    """Multiply-accumulates of experts by their definition: each weight at work meets each token once.

    How a device gets there (grouped products that the counter does not know, all experts at once) does not
    matter: `correction` is what to add to what was counted.
    """

    def __init__(self, operations: Callable[[], int]) -> None:
        """operations: how many were counted so far."""
        self.operations = operations
        self.correction = 0.0
        self._before = 0

    def watch(self, model: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        hooks = []
        for module in model.modules():
            if is_routed(module):
                hooks.append(module.register_forward_pre_hook(self._enter))
                hooks.append(module.register_forward_hook(self._leave))
        return hooks

    def _enter(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._before = self.operations()

    def _leave(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, RoutedFeedForward)
        shares = _experts(module)
        work = 0
        for name, weight in module.named_parameters():
            active, of = shares.get(name, (1, 1))
            work += weight.numel() * active // of if name.endswith("weight") else 0
        tokens = inputs[0].numel() // module.shape.hidden
        self.correction += work * tokens - (self.operations() - self._before) / 2
