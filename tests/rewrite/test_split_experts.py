"""SplitExperts: what a split feed-forward computes, what it is called, what else can and cannot be done with it."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pico import FAMILY, MODELS, plain, text, unified, unified_inputs, write_config
from pydantic import ValidationError
from tiny_bagel import DECODER, write_recipe
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from umcompress.documents.plan import (
    CompressionRecord,
    DropBlock,
    DropBranch,
    Edit,
    KeepChannels,
    Plan,
    SetTensors,
    SplitExperts,
)
from umcompress.errors import PlanError
from umcompress.graph.model_graph import trace_model
from umcompress.graph.printer import print_graph
from umcompress.models.measure import weigh
from umcompress.models.save import load_compressed, save_compressed
from umcompress.models.source import open_source
from umcompress.plan.command import plan as plan_command
from umcompress.plan.inspect import inspect_model
from umcompress.rewrite.apply import rewrite, shapes_only

# Kind of model, site, the module with the linears, where the experts go, names of the linears, width.
GEN, VISION = "layers.1.mlp_gen", "vision.0.mlp"
GATED = ("unified", GEN, GEN, GEN, ("gate_proj", "up_proj", "down_proj"), 12)
PLAIN = ("unified", VISION, VISION, VISION, ("fc1", "fc2"), 10)
BARE = ("plain", "layers.0.fc2", "layers.0", "layers.0.fc2_experts", ("fc1", "fc2"), 9)
cases = pytest.mark.parametrize("case", [GATED, PLAIN, BARE], ids=["gated", "plain", "bare"])


def split(site: str, width: int, experts: int = 3, shared: int = 0, **options: Any) -> SplitExperts:
    """Channels dealt in a stride, the last ones shared."""
    left = width - shared
    dealt = tuple(tuple(range(left))[e::experts] for e in range(experts))
    return SplitExperts(
        site=site, experts=dealt, shared=tuple(range(left, width)), **{"active": experts, **options}
    )


def edited(model: nn.Module, *edits: Edit, values: dict[str, Tensor] | None = None) -> nn.Module:
    return rewrite(copy.deepcopy(model), FAMILY, [Plan(pass_name="test", edits=edits)], [values or {}])


def outputs(model: nn.Module, kind: str, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    with torch.no_grad():
        result = model(*MODELS[kind][1](dtype=dtype))
    return list(result) if isinstance(result, tuple) else [result]


def by_token(
    x: Tensor, linears: list[nn.Linear], edit: SplitExperts, router: dict[str, Tensor], weight: Tensor
) -> Tensor:
    """The definition, a token, an expert and a channel at a time; `weight` (E, H, m) is the experts' consumer."""
    *first, last = linears
    rows = []
    for token in x:
        made = [linear.weight @ token + (0 if linear.bias is None else linear.bias) for linear in first]
        inner = F.silu(made[0]) * made[1] if len(made) == 2 else F.gelu(made[0], approximate="tanh")
        logits = [float(row @ token) for row in router["gate.weight"]]
        scores = list(logits)
        if edit.selector:
            pairs = zip(router["selector.weight"], router["selector.bias"], strict=True)
            scores = [logit + float(row @ token + bias) for logit, (row, bias) in zip(logits, pairs, strict=True)]
        chosen = sorted(range(len(scores)), key=lambda e: -scores[e])[: edit.active]
        total = sum(math.exp(logits[e]) for e in chosen)
        row = torch.zeros_like(token) if last.bias is None else last.bias.clone()
        for e in chosen:
            share = 1 + logits[e]
            if edit.weighting == "softmax":
                share = edit.active * math.exp(logits[e]) / total
            for position, channel in enumerate(edit.experts[e]):
                row = row + share * inner[channel] * weight[e, :, position]
        for channel in edit.shared:
            row = row + inner[channel] * last.weight[:, channel]
        rows.append(row)
    return torch.stack(rows)


class Instead(nn.Module):
    """Takes the place of a feed-forward of the unedited model."""

    def __init__(self, *given: Any) -> None:
        super().__init__()
        self.given = given

    def forward(self, x: Tensor) -> Tensor:
        return by_token(x, *self.given)


@cases
@pytest.mark.parametrize("weighting", ["one_plus_logit", "softmax"])
@pytest.mark.parametrize(("selector", "shared"), [(False, 0), (True, 1)])
def test_routed_output_is_the_sum_over_each_tokens_experts(
    case: Any, weighting: str, selector: bool, shared: int
) -> None:
    kind, site, home, place, names, width = case
    shared += (width - shared) % 3
    edit = split(site, width, 3, shared, active=2, weighting=weighting, selector=selector)
    draw = torch.Generator().manual_seed(5)
    dense = MODELS[kind][0]().double()
    shapes: dict[str, tuple[int, ...]] = {"gate.weight": (3, 12)}
    shapes |= {"selector.weight": (3, 12), "selector.bias": (3,)} if selector else {}
    stack = f"experts.{names[-1]}.weight"
    shapes[stack] = (3, 12, (width - shared) // 3)
    values = {name: torch.randn(shape, generator=draw).double() for name, shape in shapes.items()}
    named = {f"{place}.{name}": value for name, value in values.items()}
    model = edited(dense, edit, SetTensors(names=tuple(named)), values=named)
    linears = [dense.get_submodule(f"{home}.{name}") for name in names]
    router = {name: value for name, value in values.items() if name != stack}
    instead, unsplit = Instead(linears, edit, router, values[stack]), outputs(dense, kind)
    if home == site:
        owner, _, last = home.rpartition(".")
        setattr(dense.get_submodule(owner), last, instead)
    else:
        block = dense.get_submodule(home)
        block.fc1, block.act, block.fc2 = nn.Identity(), nn.Identity(), instead
    got, want = outputs(model, kind), outputs(dense, kind)
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-9)
    assert any(not torch.allclose(x, y, atol=1e-2) for x, y in zip(got, unsplit, strict=True))


@cases
@pytest.mark.parametrize("weighting", ["one_plus_logit", "softmax"])
def test_all_experts_behind_a_router_of_zeros_are_the_dense_feed_forward(case: Any, weighting: str) -> None:
    kind, site, _, _, _, width = case
    dense = MODELS[kind][0]().double()
    for experts, shared in ((1, 0), (width, 0), (3, width % 3 + 3), (2, width % 2)):
        model = edited(dense, split(site, width, experts, shared, weighting=weighting, selector=True))
        for x, y in zip(outputs(model, kind), outputs(dense, kind), strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-9)
    half = edited(dense, split(site, width, 3, width % 3, active=1))
    changed = zip(outputs(half, kind), outputs(dense, kind), strict=True)
    assert any(not torch.allclose(x, y, atol=1e-3) for x, y in changed)


@cases
def test_names_sites_and_graph(case: Any) -> None:
    kind, site, home, place, names, width = case
    dense = MODELS[kind][0]()
    before = set(dense.state_dict())
    shared = width % 3 + 3
    model = edited(dense, split(site, width, 3, shared, active=2, selector=True))
    biases = ["bias"] if names == ("fc1", "fc2") else []
    leaves = {f"{name}.{leaf}" for name in names[:-1] for leaf in ("weight", *biases)} | {f"{names[-1]}.weight"}
    new = {f"{place}.{stack}.{leaf}" for stack in ("experts", "shared_expert") for leaf in leaves}
    new |= {f"{place}.gate.weight", f"{place}.selector.weight", f"{place}.selector.bias"}
    new |= {f"{place}.bias"} if biases else set()
    assert set(model.state_dict()) - before == new
    gone = before - set(model.state_dict())
    assert gone == {f"{home}.{name}.{leaf}" for name in names for leaf in ("weight", *biases)}
    m, hidden = (width - shared) // 3, 12
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    assert shapes[f"{place}.experts.{names[0]}.weight"] == (3, m, hidden)
    assert shapes[f"{place}.experts.{names[-1]}.weight"] == (3, hidden, m)
    assert shapes[f"{place}.shared_expert.{names[-1]}.weight"] == (hidden, shared)
    graph = trace_model(model, FAMILY)
    assert site not in [s.path for s in graph.feed_forwards(stack="all")]
    (found,) = graph.experts(stack="all")
    assert (found.path, found.experts, found.active, found.width) == (place, 3, 2, m)
    assert (found.shared_width, found.hidden, found.selector) == (shared, hidden, True)
    assert found.producers == tuple(f"{place}.experts.{name}" for name in names[:-1])
    assert found.consumer == f"{place}.experts.{names[-1]}"
    assert found.component == ("generation" if "gen" in site else "understanding")
    assert graph.experts(found.component, stack="all", layers={found.index}) == (found,)
    assert graph.experts(stack="all", layers={2}) == ()
    # `shared` means both streams of a block that has two.
    assert graph.experts("shared", stack="all") == ((found,) if graph.block(found.block).site.has_streams else ())
    assert ("feed_forward", found.component) in [
        (b.kind, b.component) for b in graph.block(found.block).site.branches
    ]
    assert f"self.{place.removeprefix(found.block)[1:]}(" in print_graph(graph.block(found.block).graph)


def test_experts_of_a_plan_on_a_skeleton_have_the_shapes_of_the_live_ones_and_no_storage() -> None:
    plan = Plan(pass_name="t", edits=(split("layers.0.fc2", 9, 3, selector=True),))
    with torch.device("meta"):
        skeleton = plain()
    shapes_only(skeleton, FAMILY, [plan])
    live = rewrite(plain(), FAMILY, [plan]).state_dict()
    assert {n: t.shape for n, t in skeleton.state_dict().items()} == {n: t.shape for n, t in live.items()}
    assert all(tensor.is_meta for tensor in skeleton.state_dict().values())


def test_dtype_and_frozen_parameters_stay_and_the_selector_is_never_trained(tmp_path: Path) -> None:
    model = unified().bfloat16()
    model.get_parameter("layers.0.mlp.down_proj.weight").requires_grad_(False)
    fc2 = model.get_parameter("vision.1.mlp.fc2.bias").requires_grad_(False)
    edits = (split("layers.0.mlp", 10, 5, 5, selector=True), split("vision.1.mlp", 10, 2))
    rewrite(model, FAMILY, plans := [Plan(pass_name="t", edits=edits)])
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {
        "layers.0.mlp.experts.down_proj.weight", "layers.0.mlp.shared_expert.down_proj.weight",
        "layers.0.mlp.selector.weight", "layers.0.mlp.selector.bias", "vision.1.mlp.bias",
    }  # fmt: skip
    assert model.get_parameter("vision.1.mlp.bias") is fc2
    assert model.head.weight is model.embed.weight
    write_config(model, tmp_path)
    record = CompressionRecord(base="pico", family="pico", plans=tuple(plans))
    save_compressed(model, FAMILY, tmp_path / "saved", record, source=tmp_path)
    loaded = load_compressed(tmp_path / "saved", FAMILY, torch.bfloat16)
    for x, y in zip(outputs(model, "unified", torch.bfloat16), outputs(loaded, "unified", torch.bfloat16), strict=True):
        assert torch.equal(x, y)
    assert {n for n, p in loaded.named_parameters() if not p.requires_grad} == {
        "layers.0.mlp.selector.weight", "layers.0.mlp.selector.bias"
    }  # fmt: skip


@pytest.mark.parametrize("together", [True, False])
def test_channels_cut_first(together: bool) -> None:
    """By an earlier edit of the plan, or an earlier plan; a bias that came with the cut goes on."""
    dense = text().double()
    keep, bias = (0, 2, 3, 4, 7, 8), "layers.1.mlp.bias"
    cut = KeepChannels(site="layers.1.mlp", keep=keep, bias=True)
    edits: list[Edit] = [split("layers.1.mlp", 6, 2, 2), SetTensors(names=(bias,))]
    value = torch.linspace(-1, 1, 12).double()
    if together:
        model = edited(dense, cut, *edits, values={bias: value})
    else:
        model = edited(edited(dense, cut), *edits, values={bias: value})
    gone = [channel for channel in range(9) if channel not in keep]
    last: Any = dense.get_submodule("layers.1.mlp.down_proj")
    last.weight.data[:, gone] = 0
    last.bias = nn.Parameter(value)
    torch.testing.assert_close(outputs(model, "text"), outputs(dense, "text"), rtol=0, atol=1e-9)


def test_tensors_set_before_the_split_are_split() -> None:
    name, value = "layers.1.mlp.down_proj.weight", torch.randn(12, 9)
    edit = split("layers.1.mlp", 9)
    model = edited(text(), SetTensors(names=(name,)), edit, values={name: value})
    stacked = model.get_parameter("layers.1.mlp.experts.down_proj.weight")
    for expert, channels in enumerate(edit.experts):
        assert torch.equal(stacked[expert], value[:, list(channels)])


@cases
def test_a_split_branch_can_be_dropped(case: Any) -> None:
    kind, site, _, place, _, width = case
    dense = MODELS[kind][0]().double()
    block, component = ".".join(site.split(".")[:2]), "generation" if "gen" in site else "understanding"
    drop = DropBranch(block=block, branch="feed_forward", component=component)  # type: ignore[arg-type]
    model = edited(edited(dense, split(site, width, 3, width % 3, active=1)), drop)
    assert not any(name.startswith(place) for name in model.state_dict())
    for x, y in zip(outputs(model, kind), outputs(edited(dense, drop), kind), strict=True):
        assert torch.equal(x, y)


def test_a_block_with_experts_can_be_dropped_and_others_move_up() -> None:
    model = edited(text(), split("layers.0.mlp", 9), split("layers.2.mlp", 9, 3, active=1))
    rewrite(model, FAMILY, [Plan(pass_name="t", edits=(DropBlock(block="layers.0"),))])
    assert [s.path for s in trace_model(model, FAMILY).experts()] == ["layers.1.mlp"]
    # In one plan: paths mean the model before it, new names too.
    gate = torch.randn(3, 12)
    both = (split("layers.2.mlp", 9, 3, active=1), DropBlock(block="layers.0"))
    name = "layers.2.mlp.gate.weight"
    other = edited(text(), *both, SetTensors(names=(name,)), values={name: gate})
    assert torch.equal(other.get_parameter("layers.1.mlp.gate.weight"), gate)


def refused(model: nn.Module, *edits: Edit) -> str:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(PlanError) as caught:
        plan = Plan(pass_name="test", edits=edits)
        rewrite(model, FAMILY, [plan], [{name: torch.zeros(1) for name in plan.tensor_names()}])
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    return str(caught.value)


def test_what_does_not_fit_is_refused() -> None:
    edit = split("layers.0.mlp", 9)
    assert "no feed-forward layers.0.mpl (did you mean 'layers.0.mlp'?)" in refused(
        text(), edit.model_copy(update={"site": "layers.0.mpl"})
    )
    message = refused(text(), split("layers.0.mlp", 6))
    assert "channels 6, 7, 8 of layers.0.mlp are in no expert and not shared: give each of its 9 channels" in message
    assert "channels 5, 6, 7, 8 of" in refused(text(), split("layers.0.mlp", 5, 5))
    assert "channels 2, 3, 4, 5, 6, ... (7 in all) of" in refused(text(), split("layers.0.mlp", 2, 2))
    assert "index 11 is out of range: channels of layers.0.mlp are 0 to 8" in refused(text(), split("layers.0.mlp", 12))
    cut = KeepChannels(site="layers.0.mlp", keep=(0, 1, 4))
    assert "index 8 is out of range: channels of layers.0.mlp are 0 to 2" in refused(text(), cut, edit)
    drop = DropBranch(block="layers.0", branch="feed_forward", component="understanding")
    assert "layers.0.mlp is in a branch that the same plan drops" in refused(text(), edit, drop)
    message = refused(text(), DropBlock(block="layers.0"), edit)
    assert "layers.0.mlp is in layers.0, which the same plan drops" in message


@pytest.mark.parametrize(("make", "site"), [(text, "layers.0.mlp"), (plain, "layers.0.fc2")])
def test_a_split_feed_forward_is_not_cut_or_split_again(make: Any, site: str) -> None:
    edit, cut = split(site, 9, active=2), KeepChannels(site=site, keep=(0, 1))
    for again in (edit, cut):
        message = refused(make(), edit, again)
        assert f"{site} is already split into experts by an earlier edit of this plan" in message
        message = refused(edited(make(), edit), again)
        assert f"{site} is already split into 3 experts (2 active)" in message
        assert "its branch can be dropped and its tensors set, or cut the channels before the split" in message


def test_names_of_tensors_follow_the_split() -> None:
    edit = split("layers.0.mlp", 9)
    old, new = "layers.0.mlp.down_proj.weight", "layers.0.mlp.experts.down_proj.weight"
    assert f"no tensor {old} (did you mean '{new}'?)" in refused(text(), edit, SetTensors(names=(old,)))
    assert f"no tensor {new}" in refused(text(), SetTensors(names=(new,)), edit)
    assert "no tensor layers.0.mlp.selector.bias" in refused(
        text(), edit, SetTensors(names=("layers.0.mlp.selector.bias",))
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"experts": ((0, 1), (1, 2))}, "channels must be in one expert or shared, once: not so for 1"),
        ({"experts": ((0, 1), (2, 3)), "shared": (3, 4)}, "not so for 3"),
        ({"experts": ((0, 1), (2,))}, "experts have 1, 2 channels: give each equally many"),
        ({"experts": ((), ())}, "experts have no channels"),
        ({"experts": ()}, "at least 1 item"),
        ({"experts": ((0,), (-1,))}, "greater than or equal to 0"),
        ({"active": 3}, "active is 3 of 2 experts: allowed is 1 to 2"),
        ({"active": 0}, "greater than 0"),
        ({"weighting": "mean"}, "'one_plus_logit' or 'softmax'"),
    ],
)
def test_malformed_edits_are_refused_by_the_document(fields: dict[str, Any], said: str) -> None:
    right = {"site": "a", "experts": ((0, 1), (2, 3)), "active": 1}
    SplitExperts.model_validate(right)
    with pytest.raises(ValidationError, match=said.replace("(", r"\(")):
        SplitExperts.model_validate(right | fields)


@cases
def test_copies_checkpointing_and_gradients(case: Any) -> None:
    kind, site, _, place, _, width = case
    model = edited(MODELS[kind][0]().double(), split(site, width, 3, width % 3, active=2, selector=True))
    gate = model.get_parameter(f"{place}.gate.weight")
    gate.data = torch.randn(gate.shape, generator=torch.Generator().manual_seed(0)).double()
    twin = copy.deepcopy(model)
    assert torch.equal(outputs(twin, kind)[0], outputs(model, kind)[0])
    inputs = MODELS[kind][1](dtype=torch.float64)

    def gradients(net: nn.Module) -> dict[str, Tensor | None]:
        result = net(*inputs)
        sum(out.square().sum() for out in (result if isinstance(result, tuple) else [result])).backward()
        return {name: parameter.grad for name, parameter in net.named_parameters()}

    plainly = gradients(model)
    for blocks in [m for m in twin.modules() if isinstance(m, nn.ModuleList)]:
        for block in blocks:
            forward = block.forward
            block.forward = lambda *args, f=forward: checkpoint(f, *args, use_reentrant=False)
    again = gradients(twin)
    for name, grad in plainly.items():
        if ".selector." in name:
            assert grad is None
        else:
            other = again[name]
            assert grad is not None and other is not None, name
            assert torch.equal(grad, other)
    learned = plainly[f"{place}.gate.weight"]
    assert learned is not None and learned.abs().sum() > 0
    # A copy's experts are its own.
    twin.get_parameter(f"{place}.gate.weight").data.zero_()
    assert gate.abs().sum() > 0


def test_training_mode_reaches_what_lies_between_the_linears() -> None:
    """The pico block has a dropout there."""
    model = edited(plain().double(), split("layers.0.fc2", 9))
    assert not any(module.training for module in model.modules())
    (first,), (second,) = outputs(model, "plain"), outputs(model, "plain")
    assert torch.equal(first, second)
    torch.manual_seed(0)
    model.train()
    (first,), (second,) = outputs(model, "plain"), outputs(model, "plain")
    assert not torch.equal(first, second)
    assert torch.equal(outputs(copy.deepcopy(model).eval(), "plain")[0], outputs(model.eval(), "plain")[0])


class OddMLP(nn.Module):
    """Names that the experts use too, casts on the way, and a dropout after the last linear."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.case = case
        self.gate, self.experts = nn.Linear(12, 6, bias=False), nn.Linear(12, 6)
        self.bias = nn.Linear(6, 10 if case == "narrow" else 12)
        self.end = nn.Dropout()

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        if self.case == "cast":
            return self.bias((F.silu(self.gate(x)).to(x.dtype) * self.experts(x)).type_as(x))
        if self.case == "kind":
            kind = x.dtype
            return self.bias(F.silu(self.gate(x)).to(kind) * self.experts(x)).to(kind)
        if self.case == "end":
            return self.end(self.bias(F.silu(self.gate(x)) * self.experts(x)))
        if self.case == "two":
            return self.bias(F.silu(self.gate(x)) * self.experts(context))
        if self.case == "other":
            return self.bias((F.silu(self.gate(x)) * self.experts(x)).type_as(context))
        return F.pad(self.bias(F.silu(self.gate(x)) * self.experts(x)), (1, 1))


class OddBlock(nn.Module):
    def __init__(self, case: str) -> None:
        super().__init__()
        self.mlp = OddMLP(case)

    def forward(self, hidden: Tensor, context: Tensor) -> Tensor:
        return hidden + self.mlp(hidden, context)


def odd(case: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Module()
    model.layers = nn.ModuleList([OddBlock(case)])
    return model.double().eval()


@pytest.mark.parametrize(
    ("case", "place"),
    [("cast", "layers.0.mlp"), ("kind", "layers.0.mlp"), ("end", "layers.0.mlp.bias_experts")],
)
def test_odd_feed_forwards(case: str, place: str) -> None:
    model, x = odd(case), torch.randn(5, 12).double()
    want = model.get_submodule("layers.0")(x, x)
    rewrite(model, FAMILY, [Plan(pass_name="t", edits=(split("layers.0.mlp", 6),))])
    assert [s.path for s in trace_model(model, FAMILY).experts()] == [place]
    torch.testing.assert_close(model.get_submodule("layers.0")(x, x), want, rtol=0, atol=1e-9)
    assert sorted(name.removeprefix(f"{place}.") for name in model.state_dict()) == sorted(
        ["bias", "gate.weight", "experts.gate.weight", "experts.experts.weight", "experts.experts.bias",
         "experts.bias.weight"]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("two", "its first linears read different values"),
        ("other", "the function between its linears reads context too"),
        ("narrow", "it takes 12 values and gives 10"),
    ],
)
def test_feed_forwards_that_are_no_module_of_their_own(case: str, said: str) -> None:
    assert f"layers.0.mlp cannot be split: {said}" in refused(odd(case), split("layers.0.mlp", 6))


class Runs:
    """A runner of one task."""

    tasks = ("generation",)

    def __init__(self, model: nn.Module, device: str = "cpu") -> None:
        self.model, self.inputs = model, [x.to(device) for x in unified_inputs()]

    def pass_tokens(self, task: str) -> int:
        self.model(*self.inputs)
        return 4


def test_sizes_and_work_are_those_of_the_experts_at_work() -> None:
    dense = unified()
    plan = Plan(pass_name="t", edits=(split("layers.1.mlp_gen", 12, 4, 4, active=1, selector=True),))
    model = rewrite(copy.deepcopy(dense), FAMILY, [plan])
    was, now = (weigh(m, FAMILY, Runs(m)) for m in (dense, model))  # type: ignore[arg-type]
    router = 2 * 4 * 12
    assert now.parameters.total - was.parameters.total == router + 4
    # 12 channels before; 2 of the expert and 4 shared ones now.
    assert now.parameters.active["generation"] - was.parameters.active["generation"] == router + 4 - 6 * 12 * 3
    assert now.macs_per_token["generation"] - was.macs_per_token["generation"] == router - 6 * 12 * 3
    assert now.bytes.active["generation"] == 4 * now.parameters.active["generation"]
    with torch.device("meta"):
        skeleton = unified()
    shapes_only(skeleton, FAMILY, [plan])
    assert weigh(skeleton, FAMILY, Runs(skeleton, "meta")) == now  # type: ignore[arg-type]


SPLIT_PASS = '''
from typing import ClassVar
from umcompress.extend import KeepChannels, Pass, Plan, Proposal, SplitExperts


class Split(Pass):
    name: ClassVar[str] = "split"

    def plan(self, graph, statistics):
        edits = []
        for site in graph.feed_forwards("generation"):
            channels = range(site.width - 16)
            experts = tuple(tuple(channels[e::4]) for e in range(4))
            edits.append(KeepChannels(site=site.path, keep=tuple(range(site.width - 8))))
            edits.append(SplitExperts(site=site.path, experts=experts, shared=tuple(range(80, 88)), active=2))
        return Proposal(Plan(pass_name=self.name, edits=tuple(edits)))
'''


def test_plan_and_inspect_say_what_was_split(tiny_bagel: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(SPLIT_PASS, encoding="utf-8")
    recipe = write_recipe(tmp_path, tiny_bagel, {"pass": "own.py:Split"})
    (step,) = plan_command(str(recipe)).steps
    assert step.problem is None
    rows = [(s.site, s.unit, s.before, s.after, s.note) for s in step.sites if ".1." in s.site]
    site = f"{DECODER}.1.mlp_moe_gen"
    split_into = "4 experts of 20, 2 active, 8 shared"
    assert rows == [(site, "channels", 96, 88, ""), (site, "channels at work", 88, 48, split_into)]
    changed = {t.name.removeprefix(f"{site}."): (t.before, t.after) for t in step.tensors if t.name.startswith(site)}
    assert changed["down_proj.weight"] == ((64, 96), None)
    assert changed["experts.down_proj.weight"] == (None, (4, 64, 20))
    assert changed["shared_expert.gate_proj.weight"] == (None, (8, 64))
    assert changed["gate.weight"] == (None, (4, 64))
    assert len(changed) == 3 + 3 + 3 + 1
    saved = (step.before.active["generation"] - step.after.active["generation"]) / 3
    assert saved == 48 * 64 * 3 - 4 * 64

    source = open_source(str(tiny_bagel))
    model = source.load()
    dealt = tuple(tuple(range(80)[e::4]) for e in range(4))
    edits = (SplitExperts(site=site, experts=dealt, shared=tuple(range(80, 96)), active=2),)
    rewrite(model, source.family, plans := [Plan(pass_name="split", edits=edits)])
    record = CompressionRecord(base=str(tiny_bagel), family="bagel", plans=tuple(plans))
    save_compressed(model, source.family, tmp_path / "model", record, source=tiny_bagel)
    found = inspect_model(str(tmp_path / "model"), f"{DECODER}.1")
    assert [(s.path, s.component, s.shape) for s in found.sites if s.kind == "experts"] == [
        (site, "generation", "4 experts of 20, 2 active, 16 shared")
    ]
    assert site not in [s.path for s in found.sites if s.kind == "feed_forward"]
    assert found.graph is not None
    assert "self.mlp_moe_gen(" in found.graph
    assert "mlp_moe_gen.down_proj" not in found.graph


def test_dealing_covers_every_channel() -> None:
    """What the tests above rest on."""
    edit = split("a", 9, 2, 3)
    assert edit.experts == ((0, 2, 4), (1, 3, 5)) and edit.width == 3
    assert sorted(itertools.chain(*edit.experts, edit.shared)) == list(range(9))
