"""The laws that the uses of a plan must obey, and what structural edits mean, on random plans."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from drawing import draw_plan, with_values
from hypothesis import given
from hypothesis import strategies as st
from laws import kinds, law, outputs
from pico import FAMILY, MODELS, folder_bytes, write_config
from reference import Masked
from torch import Tensor, nn

from umcompress.checkpoint.index import open_files
from umcompress.documents.plan import CompressionRecord, DropBlock, KeepChannels, KeepHeads, Plan
from umcompress.graph.model_graph import trace_model
from umcompress.graph.printer import print_graph
from umcompress.models.save import load_compressed, save_compressed
from umcompress.rewrite.apply import rewrite, shapes_only
from umcompress.rewrite.tensors import evaluate


def state(model: nn.Module) -> dict[str, bytes]:
    return {name: t.numpy().tobytes() + str(t.shape).encode() for name, t in model.state_dict().items()}


def texts(model: nn.Module) -> list[str]:
    graph = trace_model(model, FAMILY)
    return [print_graph(graph.block(site.path).graph) for site in graph.blocks(stack="all")]


def same(a: nn.Module, b: nn.Module, kind: str) -> None:
    """Equal names, shapes, bytes, graphs and outputs."""
    assert state(a) == state(b)
    assert texts(a) == texts(b)
    for x, y in zip(outputs(a, kind), outputs(b, kind), strict=True):
        assert torch.equal(x, y)


def two_plans(data: st.DataObject, model: nn.Module) -> tuple[list[Plan], list[dict[str, Tensor]]]:
    """Two plans in turn, the second drawn on what the first leaves; applies both to `model`."""
    plans, blobs = [], []
    for name in ("first", "second"):
        plan, values = with_values(data, draw_plan(data, model, FAMILY, name), model, FAMILY)
        rewrite(model, FAMILY, [plan], [values])
        plans.append(plan)
        blobs.append(values)
    return plans, blobs


@kinds
@law
@given(data=st.data())
def test_edits_mean_what_the_masked_model_computes(kind: str, data: st.DataObject) -> None:
    model = MODELS[kind][0]().double()
    reference = Masked(copy.deepcopy(model))
    for _ in range(2):
        plan = draw_plan(data, model, FAMILY, dense=True)
        rewrite(model, FAMILY, [plan])
        reference.apply(plan)
    expected = reference(*MODELS[kind][1](dtype=torch.float64))
    for got, want in zip(outputs(model, kind, torch.float64), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


@kinds
@law
@given(data=st.data())
def test_law_a_json_round_trip(kind: str, data: st.DataObject) -> None:
    model = MODELS[kind][0]()
    twin = copy.deepcopy(model)
    plans, blobs = two_plans(data, model)
    again = [Plan.model_validate_json(plan.model_dump_json()) for plan in plans]
    assert again == plans
    same(rewrite(twin, FAMILY, again, blobs), model, kind)


@kinds
@law
@given(data=st.data())
def test_law_b_from_files_equals_in_memory(
    kind: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = MODELS[kind][0]()
    folder = _saved(model, tmp_path_factory.mktemp("whole"), [])
    plans, blobs = two_plans(data, model)
    tensors = shapes_only(FAMILY.skeleton(folder), FAMILY, plans)
    names = {
        module: disk
        for names in FAMILY.weight_files(MODELS[kind][0]()).values()
        for disk, module in names.items()
    }
    names["head.weight"] = "embed.weight"
    with open_files(sorted(folder.glob("*.safetensors"))) as stored:
        built = {
            n: evaluate(e, lambda name: stored.read(names[name]), blobs) for n, e in tensors.entries.items()
        }
    now = model.state_dict()
    assert built.keys() == now.keys()
    assert all(torch.equal(built[name], now[name]) for name in now)


def _saved(model: nn.Module, home: Path, plans: list[Plan], name: str = "model") -> Path:
    write_config(model, home)
    record = CompressionRecord(base="pico", family="pico", plans=tuple(plans))
    save_compressed(model, FAMILY, home / name, record, source=home, max_shard_bytes=4000)
    return home / name


@kinds
@law
@given(data=st.data())
def test_law_c_load_of_save(kind: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = MODELS[kind][0]()
    plans, _ = two_plans(data, model)
    home = tmp_path_factory.mktemp("saved")
    folder = _saved(model, home, plans)
    loaded = load_compressed(folder, FAMILY)
    same(loaded, model, kind)
    assert folder_bytes(_saved(loaded, home, plans, "again")) == folder_bytes(folder)


@kinds
@law
@given(data=st.data())
def test_law_d_in_turn_equals_concatenation(kind: str, data: st.DataObject) -> None:
    model = MODELS[kind][0]()
    twin = copy.deepcopy(model)
    plans, blobs = two_plans(data, model)
    same(rewrite(twin, FAMILY, plans, blobs), model, kind)


@kinds
def test_law_e_keeping_everything_changes_nothing(kind: str) -> None:
    model = MODELS[kind][0]()
    twin = copy.deepcopy(model)
    graph = trace_model(model, FAMILY)
    channels = [
        KeepChannels(site=s.path, keep=tuple(range(s.width))) for s in graph.feed_forwards(stack="all")
    ]
    sites = graph.attentions(stack="all")
    groups = [
        KeepHeads(site=s.path, component=s.component, key_value_groups=tuple(range(s.key_value_groups)))  # type: ignore[arg-type]
        for s in sites
    ]
    heads = [
        KeepHeads(site=s.path, component=s.component, query_heads=tuple(range(s.query_heads)))  # type: ignore[arg-type]
        for s in sites
    ]
    pointers = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    plans = [Plan(pass_name="all", edits=(*channels, *groups, *heads)), Plan(pass_name="nothing")]
    same(rewrite(model, FAMILY, plans), twin, kind)
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == pointers


@kinds
def test_resuming_from_a_copy_goes_on_from_the_rewritten_graph(kind: str) -> None:
    model = MODELS[kind][0]()
    first = Plan(pass_name="first", edits=(DropBlock(block="layers.1"),))
    twin = copy.deepcopy(rewrite(model, FAMILY, [first]))
    same(rewrite(twin, FAMILY, [first]), rewrite(model, FAMILY, [first]), kind)
