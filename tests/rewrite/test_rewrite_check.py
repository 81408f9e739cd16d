"""What a plan may not do is found before anything changes, all of it at once; what a check catches after."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pico import FAMILY, text, unified, unified_inputs
from pydantic import ValidationError
from torch import nn

from umcompress.documents.plan import DropBlock, DropBranch, Edit, KeepChannels, KeepHeads, Plan, SetTensors
from umcompress.errors import CheckError, PlanError
from umcompress.rewrite.apply import rewrite, shapes_only
from umcompress.rewrite.structure import LAYER_NUMBERS

ATTENTION = "layers.0.self_attn"


def refused(model: nn.Module, *edits: Edit) -> str:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(PlanError) as caught:
        rewrite(model, FAMILY, [Plan(pass_name="test", edits=edits)])
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_all_problems_are_listed_together_and_nothing_changes() -> None:
    message = refused(
        unified(),
        KeepChannels(site="layers.0.mlp", keep=(0, 1)),
        DropBlock(block="layer.1"),
        DropBranch(block="vision.0", branch="attention", component="generation"),
        KeepChannels(site="layers.1.ml", keep=(0,)),
        KeepChannels(site="layers.0.mlp", keep=(1, 2)),
        KeepHeads(site=ATTENTION, component="understanding", query_heads=(0, 1, 2)),
        KeepHeads(site="layers.1.self_attn", component="generation", key_value_groups=(2,)),
        KeepHeads(site="layers.1.self_attn", component="shared", key_value_groups=(0,)),
    )
    assert "no block layer.1 (did you mean 'layers.1'?)" in message
    assert "no generation attention branch of vision.0" in message
    assert "no feed-forward layers.1.ml (did you mean 'layers.1.mlp'?)" in message
    assert "index 2 is out of range: channels of layers.0.mlp are 0 to 1" in message
    assert "[2, 1] query heads" in message
    assert "index 2 is out of range: key-value groups of layers.1.self_attn are 0 to 1" in message
    assert "no attention layers.1.self_attn (shared)" in message


def test_contradictions_are_refused() -> None:
    message = refused(
        unified(),
        DropBlock(block="layers.1"),
        DropBlock(block="layers.1"),
        DropBranch(block="layers.1", branch="attention", component="generation"),
        KeepChannels(site="layers.1.mlp", keep=(0,)),
        DropBranch(block="layers.0", branch="feed_forward", component="understanding"),
        KeepChannels(site="layers.0.mlp", keep=(0,)),
        DropBranch(block="layers.0", branch="attention", component="understanding"),
        KeepHeads(site=ATTENTION, component="understanding", key_value_groups=(0,)),
    )
    assert "layers.1 is dropped 2 times" in message
    assert "layers.1 is dropped as a whole by the same plan" in message
    assert "layers.1.mlp is in layers.1, which the same plan drops" in message
    assert "layers.0.mlp is in a branch that the same plan drops" in message
    assert f"{ATTENTION} is in a branch that the same plan drops" in message


def test_the_other_stream_may_be_cut_where_one_is_dropped() -> None:
    edits = (
        DropBranch(block="layers.0", branch="attention", component="understanding"),
        KeepHeads(site=ATTENTION, component="generation", key_value_groups=(1,)),
    )
    model = rewrite(unified(), FAMILY, [Plan(pass_name="test", edits=edits)])
    model(*unified_inputs())


def test_a_stack_keeps_a_block() -> None:
    hollow = [
        DropBranch(block="layers.2", branch="attention", component="understanding"),
        DropBranch(block="layers.2", branch="feed_forward", component="understanding"),
    ]
    message = refused(text(), DropBlock(block="layers.0"), DropBlock(block="layers.1"), *hollow)
    assert "nothing would be left of the stack decoder" in message


def test_a_hollow_block_leaves_the_stack_and_the_rest_is_renumbered() -> None:
    model = text()
    kept = model.get_submodule("layers.2")
    hollow = [
        DropBranch(block="layers.1", branch=kind, component="understanding")
        for kind in ("attention", "feed_forward")
    ]
    # The last edit means block 2 of the model before the plan.
    rewrite(
        model, FAMILY, [Plan(pass_name="t", edits=(*hollow, KeepChannels(site="layers.2.mlp", keep=(0, 5))))]
    )
    assert model.get_submodule("layers.1") is kept
    assert model.get_submodule("layers.1.self_attn").layer_idx == 1
    assert model.get_submodule("layers.1.mlp.down_proj").in_features == 2
    assert len(model.layers) == 2


def test_a_plan_that_does_not_fit_leaves_the_model_as_the_plans_before_it_left_it() -> None:
    model, twin = text(), text()
    good = Plan(pass_name="good", edits=(KeepChannels(site="layers.0.mlp", keep=(1, 2)),))
    bad = Plan(pass_name="bad", edits=(KeepChannels(site="layers.0.mlp", keep=(5,)),))
    with pytest.raises(PlanError, match="apply the plan of bad"):
        rewrite(model, FAMILY, [good, bad])
    expected = rewrite(twin, FAMILY, [good]).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_values_must_be_given_and_have_shape_and_dtype() -> None:
    name = "layers.0.mlp.down_proj.weight"
    cut = KeepChannels(site="layers.0.mlp", keep=(0, 1))
    plan = Plan(pass_name="test", edits=(cut, SetTensors(names=(name,))))
    with pytest.raises(CheckError, match="no values given"):
        rewrite(text(), FAMILY, [plan])
    with pytest.raises(CheckError, match=r"\(12, 9\)"):
        rewrite(text(), FAMILY, [plan], [{name: torch.zeros(12, 9)}])
    with pytest.raises(CheckError, match="float64"):
        rewrite(text(), FAMILY, [plan], [{name: torch.zeros(12, 2, dtype=torch.float64)}])
    value = torch.randn(12, 2)
    done = rewrite(text(), FAMILY, [plan], [{name: value}]).get_parameter(name)
    assert torch.equal(done, value)
    assert done.data_ptr() != value.data_ptr()


def test_tensors_set_and_not_resized_keep_their_ties() -> None:
    model, value = unified(), torch.randn(16, 12)
    plan = Plan(pass_name="test", edits=(SetTensors(names=("embed.weight",)),))
    rewrite(model, FAMILY, [plan], [{"embed.weight": value}])
    assert model.head.weight is model.embed.weight
    assert torch.equal(model.head.weight, value)
    plan = Plan(pass_name="test", edits=(SetTensors(names=("embed.wieght",)),))
    with pytest.raises(PlanError, match=r"did you mean 'embed\.weight'"):
        rewrite(model, FAMILY, [plan], [{"embed.wieght": value}])


def test_a_bias_comes_as_zeros_and_can_be_set_by_the_same_plan() -> None:
    name = "layers.1.mlp.down_proj.bias"
    cut = KeepChannels(site="layers.1.mlp", keep=(3,), bias=True)
    zero = rewrite(text(), FAMILY, [Plan(pass_name="test", edits=(cut,))]).get_parameter(name)
    assert torch.equal(zero, torch.zeros(12))
    plan = Plan(pass_name="test", edits=(cut, SetTensors(names=(name,))))
    done = rewrite(text(), FAMILY, [plan], [{name: torch.ones(12)}]).get_parameter(name)
    assert torch.equal(done, torch.ones(12))


def test_requires_grad_and_buffers_stay() -> None:
    model = unified()
    model.get_parameter("layers.0.mlp.up_proj.weight").requires_grad_(False)
    rewrite(model, FAMILY, [Plan(pass_name="t", edits=(KeepChannels(site="layers.0.mlp", keep=(0, 2)),))])
    assert not model.get_parameter("layers.0.mlp.up_proj.weight").requires_grad
    assert model.get_parameter("layers.0.mlp.gate_proj.weight").requires_grad
    assert model.scale == 0.5


def test_a_skeleton_gets_shapes_and_no_storage() -> None:
    with torch.device("meta"):
        skeleton = text()
    plan = Plan(
        pass_name="t", edits=(KeepChannels(site="layers.0.mlp", keep=(0, 2)), DropBlock(block="layers.1"))
    )
    shapes_only(skeleton, FAMILY, [plan])
    live = rewrite(text(), FAMILY, [plan])
    assert {n: t.shape for n, t in skeleton.state_dict().items()} == {
        n: t.shape for n, t in live.state_dict().items()
    }
    assert all(tensor.is_meta for tensor in skeleton.state_dict().values())


def test_gradients_reach_every_parameter_that_is_left() -> None:
    edits = (
        DropBranch(block="layers.1", branch="attention", component="understanding"),
        KeepHeads(site=ATTENTION, component="generation", query_heads=(0, 3)),
        KeepChannels(site="vision.0.mlp", keep=(1, 4)),
    )
    model = copy.deepcopy(rewrite(unified(), FAMILY, [Plan(pass_name="test", edits=edits)]))
    sum(out.square().sum() for out in model(*unified_inputs())).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(
    "fields",
    [
        {"site": "a", "component": "shared"},
        {"site": "a", "component": "shared", "query_heads": (0,), "key_value_groups": (0,)},
        {"site": "a", "component": "shared", "query_heads": (1, 0)},
        {"site": "a", "component": "shared", "query_heads": (1, 1)},
        {"site": "a", "component": "shared", "query_heads": ()},
        {"site": "a", "component": "shared", "query_heads": (-1,)},
        {"site": "a", "component": "neither", "query_heads": (0,)},
        {"site": "a", "component": "shared", "query_heads": (0,), "more": 1},
    ],
)
def test_malformed_edits_are_refused_by_the_document(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        KeepHeads.model_validate(fields)


def test_every_part_of_a_moved_block_learns_its_new_number() -> None:
    """By whatever name it keeps it; a block with several slots in the cache has as many numbers, in a row."""
    model = text()
    for old, block in enumerate(model.layers):
        attention: Any = block.get_submodule("self_attn")
        attention.layer_idx = 2 * old
        attention.q_proj.layer_idx = 2 * old + 1
        for name in LAYER_NUMBERS:
            setattr(block, name, old)
        parts: Any = block
        parts.mlp.layer_id = "not a number"
        parts.norm1.layer_id = 7
    rewrite(model, FAMILY, [Plan(pass_name="test", edits=(DropBlock(block="layers.1"),))])
    moved: Any = model.layers[1]
    assert (moved.self_attn.layer_idx, moved.self_attn.q_proj.layer_idx) == (2, 3)
    assert {name: getattr(moved, name) for name in LAYER_NUMBERS} == dict.fromkeys(LAYER_NUMBERS, 1)
    assert (moved.mlp.layer_id, moved.norm1.layer_id) == ("not a number", 7)
    first: Any = model.layers[0]
    assert (first.self_attn.layer_idx, first.self_attn.q_proj.layer_idx, first.layer_id) == (0, 1, 0)
