"""Every architecture of the support table split into experts: equal to masked channels, cached, trained, saved.

The references know neither graphs nor our module of experts: they are the dense model, whose channels are weighed by
hooks, token by token, as routers say that are computed here by hand.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_checks import chunks_differ, folders, learn, padded_differ, same
from hf_subject import FAMILY, Subject, columns, differ, run, subject, void
from hf_zoo import ZOO
from torch import Tensor

from umcompress.calibrate.collect import collect
from umcompress.data.training_file import TrainingFile
from umcompress.documents.plan import CompressionRecord, Plan, SetTensors, SplitExperts
from umcompress.errors import PlanError
from umcompress.extend import Statistics
from umcompress.graph.model_graph import trace_model
from umcompress.graph.sites import FeedForwardSite
from umcompress.models.save import save_compressed
from umcompress.models.source import Source, open_source
from umcompress.passes.adapt import Adapt
from umcompress.passes.moe_split import MoeSplit
from umcompress.passes.router_train import RouterTrain
from umcompress.rewrite.apply import rewrite
from umcompress.train.progress import CURVE, Curve
from umcompress.train.step import run_training

# Nothing in Mixtral's layers can be split: they are experts.
STACKS = [(name, stack) for name, entry in ZOO.items() for stack in entry.stacks if name != "mixtral"]
SPEAKING = [name for name, entry in ZOO.items() if entry.speaks and name != "mixtral"]
EXPERTS, SHARED = 4, 8
Values = Mapping[str, Tensor]


def dealt(one: Subject, stack: str, active: int) -> list[SplitExperts]:
    """All feed-forwards of a stack, their channels at random; both weightings and both selectors in turn."""
    edits = []
    for number, site in enumerate(one.graph.feed_forwards(stack=stack)):
        order = torch.randperm(site.width, generator=torch.Generator().manual_seed(number)).tolist()
        ways: dict[str, Any] = {"weighting": "softmax"} if number % 2 else {"selector": True}
        experts = tuple(tuple(order[SHARED + e :: EXPERTS]) for e in range(EXPERTS))
        shared = tuple(order[:SHARED])
        edits.append(SplitExperts(site=site.path, experts=experts, shared=shared, active=active, **ways))
    return edits


def site_of(one: Subject, edit: SplitExperts) -> FeedForwardSite:
    return next(site for site in one.graph.feed_forwards(stack="all") if site.path == edit.site)


def place_of(one: Subject, edit: SplitExperts) -> str:
    """The path of the module of experts."""
    place = one.graph.split_place(site_of(one, edit))
    assert not isinstance(place, str)
    return place.path


def routed(one: Subject, edits: list[SplitExperts]) -> tuple[Plan, dict[str, Tensor]]:
    """A plan that splits and gives the routers values."""
    draw, values = torch.Generator().manual_seed(7), dict[str, Tensor]()
    for edit in edits:
        hidden = columns(one.model.get_submodule(site_of(one, edit).consumer)).shape[0]
        parts: dict[str, tuple[int, ...]] = {"gate.weight": (EXPERTS, hidden)}
        if edit.selector:
            parts |= {"selector.weight": (EXPERTS, hidden), "selector.bias": (EXPERTS,)}
        for name, shape in parts.items():
            values[f"{place_of(one, edit)}.{name}"] = torch.randn(shape, generator=draw, dtype=torch.float64) / 4
    return Plan(pass_name="test", edits=(*edits, SetTensors(names=tuple(values)))), values


def shares(x: Tensor, edit: SplitExperts, router: Values, width: int) -> Tensor:
    """x (T, H) -> (T, I): what each channel counts for each token."""
    rows = torch.zeros(len(x), width, dtype=x.dtype)
    rows[:, list(edit.shared)] = 1
    for number, token in enumerate(x):
        logits = [0.0] * EXPERTS
        if "gate.weight" in router:
            logits = [float(row @ token) for row in router["gate.weight"]]
        scores = logits
        if edit.selector:
            pairs = zip(router["selector.weight"], router["selector.bias"], strict=True)
            scores = [logit + float(row @ token + bias) for logit, (row, bias) in zip(logits, pairs, strict=True)]
        chosen = sorted(range(EXPERTS), key=lambda e: -scores[e])[: edit.active]
        total = sum(math.exp(logits[e]) for e in chosen)
        for e in chosen:
            softmax = edit.active * math.exp(logits[e]) / total
            rows[number, list(edit.experts[e])] = softmax if edit.weighting == "softmax" else 1 + logits[e]
    return rows


def masked(one: Subject, plan: Plan, values: Values) -> Any:
    """The dense model with what the plan says as weights of channels, and the consumers that it refits."""
    model = copy.deepcopy(one.model)
    for edit in plan.edits:
        if not isinstance(edit, SplitExperts):
            continue
        site, place = site_of(one, edit), place_of(one, edit)
        router = {name.removeprefix(f"{place}."): value for name, value in values.items() if name.startswith(place)}
        first, last = (model.get_submodule(path) for path in (site.producers[0], site.consumer))
        name = site.consumer.rpartition(".")[2]
        if f"experts.{name}.weight" in router:
            for channels, weight in zip(edit.experts, router[f"experts.{name}.weight"], strict=True):
                columns(last)[:, list(channels)] = weight
            columns(last)[:, list(edit.shared)] = router[f"shared_expert.{name}.weight"]
        if "bias" in router:
            last.bias.data = router["bias"]
        weigh(first, last, edit, router)
    return model


def weigh(first: Any, last: Any, edit: SplitExperts, router: Values) -> None:
    seen: list[Tensor] = []

    def enter(_: Any, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    def leave(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        x, inner = seen.pop(), inputs[0]
        return (inner * shares(x.reshape(-1, x.shape[-1]), edit, router, inner.shape[-1]).reshape(inner.shape),)

    first.register_forward_pre_hook(enter)
    last.register_forward_pre_hook(leave)


def split(one: Subject, plan: Plan, values: Values) -> Any:
    return rewrite(copy.deepcopy(one.model), FAMILY, [plan], [values])


@pytest.mark.parametrize(("name", "stack"), STACKS)
def test_all_experts_behind_routers_of_zeros_are_the_dense_model(name: str, stack: str) -> None:
    one = subject(name)
    edits = dealt(one, stack, EXPERTS)
    model = split(one, Plan(pass_name="test", edits=tuple(edits)), {})
    assert differ(run(model), one.outputs) < 1e-9
    routers = tuple(f"{place_of(one, edit)}.{part}." for edit in edits for part in ("gate", "selector"))
    sizes = {key: value.numel() for key, value in model.state_dict().items() if not key.startswith(routers)}
    assert sum(sizes.values()) == sum(value.numel() for value in one.model.state_dict().values())
    sites = [site_of(one, edit) for edit in edits]
    gone = tuple(f"{path}." for site in sites for path in (*site.producers, site.consumer))
    assert not any(key.startswith(gone) for key in sizes)


@pytest.mark.parametrize(("name", "stack"), STACKS)
def test_experts_do_what_weighing_the_dense_models_channels_would(name: str, stack: str) -> None:
    one = subject(name)
    plan, values = routed(one, dealt(one, stack, 2))
    ours = run(split(one, plan, values))
    assert differ(ours, run(masked(one, plan, values))) < 1e-5
    assert differ(ours, one.outputs) > 1e-4


@pytest.mark.parametrize(("name", "stack"), STACKS)
def test_what_the_pass_plans_is_what_masks_and_refitted_consumers_give(name: str, stack: str) -> None:
    one = subject(name)
    planner = MoeSplit(stack=stack, layers="all", experts=EXPERTS, active=2, shared=1 / 6)
    # Measured in float32: in float64 some of transformers' masks overflow on padding.
    model = copy.deepcopy(one.model).float()
    graph = trace_model(model, FAMILY)
    found = planner.plan(graph, collect(graph, planner.needs(), lambda: void(run(model))))
    plan, values = found.plan, {key: value.double() for key, value in found.tensors.items()}
    assert any(key.endswith(".selector.weight") for key in values)
    ours = run(split(one, plan, values))
    assert differ(ours, run(masked(one, plan, values))) < 1e-5
    assert differ(ours, one.outputs) > 1e-4


def test_experts_are_not_split_again() -> None:
    with pytest.raises(PlanError, match="its feed-forward is a mixture of experts already"):
        subject("mixtral").plan(MoeSplit(experts=2, active=1, layers="all"))


@pytest.mark.parametrize("name", SPEAKING)
def test_a_cache_changes_nothing_for_experts(name: str) -> None:
    one = subject(name)
    model = split(one, *routed(one, dealt(one, "main", 2))).float()
    assert chunks_differ(model) < 1e-5
    assert padded_differ(model) < 1e-5


@pytest.mark.parametrize("name", [name for name in sorted(ZOO) if name != "mixtral"])
def test_experts_and_routers_get_gradients_and_copies_are_their_own(name: str) -> None:
    one = subject(name)
    dense = copy.deepcopy(one.model)
    learn(dense)
    for stack in one.entry.stacks:
        edits = dealt(one, stack, 2)
        model = split(one, *routed(one, edits))
        learn(model)
        for edit in edits:
            reached = dense.get_submodule(site_of(one, edit).consumer).weight.grad is not None
            for path, parameter in model.get_submodule(place_of(one, edit)).named_parameters():
                learns = reached and not path.startswith("selector.")
                assert (parameter.grad is not None) == learns, path
                if learns:
                    rows = parameter.grad if path.startswith("experts.") else parameter.grad[None]
                    assert sum(bool(row.any()) for row in rows) >= min(2, len(rows)), path
        before = run(model)
        twin = copy.deepcopy(model)
        same(run(twin), before)
        for parameter in twin.get_submodule(place_of(one, edits[0])).parameters():
            parameter.data.zero_()
        same(run(model), before)


def trained(model: Any, source: Source, home: Path) -> list[Plan]:
    """The plans of a few steps on the same texts: routers by these alone, experts too, taught by the dense model."""
    data, plans = TrainingFile(data=home / "texts.jsonl"), []
    # No letters: in these vocabularies small ones are codes of pictures.
    data.data.write_text("".join(f'{{"text": "1234567890, {number} * {number}"}}\n' for number in (111, 22, 3)))
    few: dict[str, Any] = {
        "steps": 3, "batch_size": 3, "warm_up": 0, "learning_rate": 5e-4, "schedule": "constant",
        "losses": {"balance": 0},
    }  # fmt: skip
    alone = {"losses": {"task": 1, "distill_output": 0, "distill_blocks": 0, "balance": 0}}
    for planner in (RouterTrain(**few | alone), Adapt(**few)):
        plan = planner.plan(trace_model(model, source.family), Statistics()).plan
        folder = home / planner.name
        values = run_training(planner, plan.tensor_names(), model, source, data, folder, void, planner.name)
        curve = Curve(folder / CURVE)
        curve.read()
        first, *_, last = (row["losses"]["loss"] for row in curve.rows)
        assert last < first, (planner.name, first, last)
        rewrite(model, source.family, [plan], [values])
        plans.append(plan)
    return plans


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return folders(tmp_path_factory.mktemp)


@pytest.mark.parametrize(("name", "stack"), STACKS)
def test_split_models_load_to_the_same_bits_and_transformers_refuses_them(
    name: str, stack: str, sources: Any, tmp_path: Path
) -> None:
    """What transformers does not know must not be loaded with weights at random in its place."""
    one, folder = subject(name), sources(name)
    source = open_source(str(folder))
    plan, values = routed(one, dealt(one, stack, 2))
    model = rewrite(source.load(), source.family, [plan], [{key: value.float() for key, value in values.items()}])
    plans = [plan]
    if stack == "main" and one.entry.speaks:
        plans += trained(model, source, tmp_path)
    record = CompressionRecord(base=str(folder), family="transformers", plans=tuple(plans))
    save_compressed(model, source.family, tmp_path / "model", record, folder)
    same(run(open_source(str(tmp_path / "model")).load()), run(model))
    with pytest.raises(ValueError, match="load_it_with_umcompress"):
        type(one.model).from_pretrained(tmp_path / "model")
