"""One architecture of the support table: its pico model, plans for it, and references that know no graph."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from hf_models import randomise
from hf_zoo import ZOO, Entry
from torch import Tensor, nn

from umcompress.calibrate.collect import collect
from umcompress.documents.plan import DropBlock, DropBranch, Edit, KeepChannels, KeepHeads, Plan
from umcompress.extend import Calibration, Statistics
from umcompress.extend.pass_base import Pass
from umcompress.graph.guards import is_guard
from umcompress.graph.model_graph import ModelGraph, trace_model
from umcompress.models.hf.anatomy.attention import layout_of
from umcompress.models.hf.ask.text_runner import TransformersRunner
from umcompress.models.hf.family import TransformersFamily
from umcompress.passes.channel_prune import ChannelPrune
from umcompress.passes.head_prune import HeadPrune
from umcompress.passes.layer_drop import LayerDrop
from umcompress.rewrite.apply import rewrite

FAMILY = TransformersFamily()
Outputs = dict[str, Tensor]
# The last linear of a feed-forward, or what holds all its experts' last matrices.
_LAST = re.compile(r"(mlp|feed_forward|shared_experts?)\.(down_proj|c_proj|fc2|w2|dense_4h_to_h)$|(^|\.)(fc2|experts)$")
_ATTENTION_OUT = re.compile(r"(attn|attention|self_attn)\.(o_proj|out_proj|c_proj|proj|projection_layer|dense)$")


@dataclass
class Subject:
    """A pico model in float64, never changed; edits go to copies."""

    name: str
    entry: Entry
    model: Any

    @cached_property
    def graph(self) -> ModelGraph:
        return trace_model(self.model, FAMILY)

    @cached_property
    def outputs(self) -> Outputs:
        return run(self.model)

    def plan(self, planner: Pass) -> Plan:
        """The pass's own plan; what it measures, it measures on the probe's inputs.

        In float32: the softmax of some models overflows at the mask of a padded row in float64.
        """
        statistics = Statistics(task="understanding")
        if needs := planner.needs():
            model = copy.deepcopy(self.model).float()
            statistics = collect(trace_model(model, FAMILY), needs, lambda: void(run(model)))
        self.values = planner.plan(self.graph, statistics)
        return self.values.plan

    def edited(self, *edits: Edit) -> Any:
        return rewrite(copy.deepcopy(self.model), FAMILY, [Plan(pass_name="test", edits=edits)])

    def stack(self, stack: str) -> list[str]:
        """Paths of a stack's blocks."""
        path = self.graph.stacks[stack]
        return [f"{path}.{index}" for index in range(len(self.model.get_submodule(path)))]


@cache
def subject(name: str) -> Subject:
    """Built once in a session."""
    torch.manual_seed(0)
    model = ZOO[name].build()
    model.eval()  # type: ignore[no-untyped-call]
    randomise(model)
    # Grouped products know no float64.
    model.set_experts_implementation("eager")
    return Subject(name, ZOO[name], FAMILY.adopt(model.double()))


def void(_: object) -> None:
    """Only the run matters."""


def run(model: Any) -> Outputs:
    """Text logits, a row of them padded on the left, and what the vision tower gives."""
    return TransformersRunner(model, Path()).probe()


def differ(ours: Outputs, theirs: Outputs) -> float:
    """Largest difference, over the size of what is compared."""
    assert ours.keys() == theirs.keys()
    worst = 0.0
    for name, value in ours.items():
        # Tokens that a model forbids have logits of the largest negative number.
        one, other = (part.nan_to_num(0).clamp(min=-1e6) for part in (value, theirs[name]))
        worst = max(worst, float((one - other).abs().max() / other[other > -1e6].abs().max().clamp(min=1)))
    return worst


# -- references -----------------------------------------------------------------------------------------------------


def zeroed(subject: Subject, edits: Iterable[Edit]) -> Any:
    """A copy in which what the edits remove adds nothing: found by the names of modules, not by tracing."""
    model = copy.deepcopy(subject.model)
    for edit in edits:
        if isinstance(edit, DropBlock):
            silence(model.get_submodule(edit.block), _ATTENTION_OUT)
            silence(model.get_submodule(edit.block), _LAST)
        elif isinstance(edit, DropBranch):
            silence(model.get_submodule(edit.block), _ATTENTION_OUT if edit.branch == "attention" else _LAST)
        elif isinstance(edit, KeepChannels):
            site = next(s for s in subject.graph.feed_forwards(stack="all") if s.path == edit.site)
            last = model.get_submodule(site.consumer)
            gone = [channel for channel in range(site.width) if channel not in edit.keep]
            columns(last)[:, gone] = 0
        elif isinstance(edit, KeepHeads):
            attention = model.get_submodule(edit.site)
            last = next(child for name, child in attention.named_modules() if _ATTENTION_OUT.search(f"attn.{name}"))
            weight, width = columns(last), width_of(attention)
            heads = weight.shape[1] // width
            kept = edit.query_heads
            if edit.key_value_groups is not None:
                per = heads // groups_of(attention)
                kept = tuple(group * per + j for group in edit.key_value_groups for j in range(per))
            for head in set(range(heads)) - set(kept or ()):
                weight[:, head * width : (head + 1) * width] = 0
    return model


def groups_of(attention: Any) -> int:
    """How many key-value groups, by the module's own number."""
    if hasattr(attention, "num_kv_heads"):
        return int(attention.num_kv_heads)
    per = getattr(attention, "num_key_value_groups", 1)
    last = next(child for name, child in attention.named_modules() if _ATTENTION_OUT.search(f"attn.{name}"))
    return int(columns(last).shape[1] // width_of(attention) // per)


def width_of(attention: Any) -> int:
    """How wide a head is, by the module's own number."""
    return int(getattr(attention, "head_dim", None) or attention.head_size)


def columns(linear: Any) -> Tensor:
    """The weight as (out, in), a view."""
    weight: Tensor = linear.weight.data
    return weight.t() if type(linear).__name__ == "Conv1D" else weight


def silence(block: nn.Module, pattern: re.Pattern[str]) -> None:
    """Zero what the last linears of a branch add."""
    found = [module for name, module in block.named_modules() if pattern.search(name)]
    assert found, [name for name, _ in block.named_modules()]
    for module in found:
        for parameter in module.parameters():
            parameter.data.zero_()


# -- plans ----------------------------------------------------------------------------------------------------------

CALIBRATION = Calibration(samples=2)


def passes(stack: str) -> dict[str, Callable[[], Pass]]:
    """Each shipped pass on one stack, by weights alone and by measuring."""
    shared: dict[str, Any] = {"stack": stack}
    return {
        "layer_drop": lambda: LayerDrop(drop_count=1, score="cosine", **shared),
        "layer_drop attention": lambda: LayerDrop(unit="attention", drop_count=1, score="first", **shared),
        "layer_drop feed_forward": lambda: LayerDrop(unit="feed_forward", drop_count=1, score="cosine", **shared),
        "channel_prune": lambda: ChannelPrune(keep_ratio=0.5, score="activation", repair="none", **shared),
        "head_prune": lambda: HeadPrune(keep_ratio=0.5, score="contribution", **shared),
        "head_prune query_head": lambda: HeadPrune(keep_ratio=0.5, score="magnitude", unit="query_head", **shared),
    }


# -- facts for the table --------------------------------------------------------------------------------------------


def traced_as(subject: Subject, stack: str) -> str:
    """How a stack was traced."""
    graphs = [subject.graph.block(site.path).graph for site in subject.graph.blocks(stack=stack)]
    guards = {str(node.args[1]) for graph in graphs for node in graph.nodes if is_guard(node)}
    return f"assumes {', '.join(sorted(guards))} as by default" if guards else "symbolic"


def heads_of(subject: Subject, stack: str) -> str:
    """The heads of a stack, or why they are not known."""
    if sites := subject.graph.attentions(stack=stack):
        return f"{sites[0].query_heads} / {sites[0].key_value_groups}"
    block = subject.graph.block(subject.stack(stack)[0])
    for branch in block.branches:
        if branch.kind == "attention" and branch.leaf is not None:
            found = layout_of(subject.model.get_submodule(f"{block.site.path}.{branch.leaf.target}"))
            return f"none: {found}"
    return "none: no attention found"


def channels_of(subject: Subject, stack: str) -> str:
    """The kinds of feed-forwards in a stack, or why there is none that can be narrowed."""
    sites = subject.graph.feed_forwards(stack=stack)
    kinds = sorted({kind(site.producers) for site in sites})
    without = [site for site in subject.graph.blocks(stack=stack) if site.path not in {s.block for s in sites}]
    if beside := experts_of(subject, [site.block for site in sites]):
        kinds.append(f"of mixtures the shared expert, not {beside[0]}, which holds 3-D tensors")
    if experts := experts_of(subject, [site.path for site in without]):
        kinds.append(f"none in {len(without)} of {len(subject.stack(stack))} layers: {experts[0]} holds 3-D tensors")
    elif without:
        kinds.append(f"none in {len(without)} layers")
    return ", ".join(kinds)


def experts_of(subject: Subject, blocks: Iterable[str]) -> list[str]:
    """Classes of a mixture's own experts in these blocks."""
    names = {type(m).__name__ for block in blocks for m in subject.model.get_submodule(block).modules()}
    return sorted(name for name in names if name.endswith("Experts"))


def kind(producers: Sequence[str]) -> str:
    """gated, fused or plain."""
    if len(set(producers)) < len(producers):
        return "fused"
    return "gated" if len(producers) > 1 else "plain"
