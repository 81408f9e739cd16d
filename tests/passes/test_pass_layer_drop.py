"""layer_drop: what it chooses, how many, and what it writes into the plan."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pico_passes import Bench, bench, mean_cosine, walk
from pydantic import ValidationError

from umcompress.documents.base import Task
from umcompress.documents.plan import DropBlock, DropBranch, Edit
from umcompress.errors import PlanError
from umcompress.extend import Statistics
from umcompress.passes._common import dropped_count
from umcompress.passes.layer_drop import LayerDrop

UND = {"component": "understanding"}


@pytest.fixture(scope="module")
def pico() -> Bench:
    return bench(depth=5)


def drop(**options: Any) -> LayerDrop:
    return LayerDrop.model_validate({**UND, **options})


def dropped(edits: tuple[Edit, ...]) -> list[str]:
    return [edit.block for edit in edits if isinstance(edit, DropBlock | DropBranch)]


def direct_scores(pico: Bench, unit: str, stream: int, model: Any = None) -> list[float]:
    start, end = {"block": (0, 2), "attention": (0, 1), "feed_forward": (1, 2)}[unit]
    trails = [walk(model or pico.model, inputs) for inputs in pico.feeds]
    return [
        mean_cosine([(trail[i][start][stream], trail[i][end][stream]) for trail in trails])
        for i in range(len(trails[0]))
    ]


@pytest.mark.parametrize("unit", ["block", "attention", "feed_forward"])
@pytest.mark.parametrize("component", ["understanding", "generation"])
def test_the_least_turning_parts_go(pico: Bench, unit: str, component: Task) -> None:
    scores = direct_scores(pico, unit, int(component == "generation"))
    expected = sorted(sorted(range(5), key=lambda i: -scores[i])[:2])
    plan = pico.plan(drop(component=component, unit=unit, drop_count=2)).plan
    kinds: Any = ["attention", "feed_forward"] if unit == "block" else [unit]
    assert plan.edits == tuple(
        DropBranch(block=f"layers.{i}", branch=kind, component=component) for i in expected for kind in kinds
    )
    assert [e.scores[0] for e in plan.evidence] == pytest.approx(scores, abs=1e-12)
    assert [e.note == "dropped" for e in plan.evidence] == [i in expected for i in range(5)]


@pytest.mark.parametrize("unit", ["block", "attention", "feed_forward"])
def test_both_streams_lose_what_turns_them_least_on_average(pico: Bench, unit: str) -> None:
    own = [direct_scores(pico, unit, stream) for stream in (0, 1)]
    scores = [(one + other) / 2 for one, other in zip(*own, strict=True)]
    expected = sorted(sorted(range(5), key=lambda i: -scores[i])[:2])
    plan = pico.plan(drop(component="shared", unit=unit, drop_count=2)).plan
    if unit == "block":
        assert plan.edits == tuple(DropBlock(block=f"layers.{i}") for i in expected)
    else:
        gone = [(edit.block, edit.branch, edit.component) for edit in plan.edits if isinstance(edit, DropBranch)]
        streams = ("understanding", "generation")
        assert sorted(gone) == sorted((f"layers.{i}", unit, stream) for i in expected for stream in streams)
    assert [e.scores[0] for e in plan.evidence] == pytest.approx(scores, abs=1e-12)
    greedy = pico.plan(drop(component="shared", unit=unit, drop_count=1, greedy=True)).plan
    assert dropped(greedy.edits)[0] == f"layers.{max(range(5), key=lambda i: scores[i])}"


def test_a_block_without_another_component_goes_as_a_whole(pico: Bench) -> None:
    plan = pico.plan(drop(stack="vision", score="first", drop_count=1)).plan
    assert plan.edits == (DropBlock(block="vision.0"),)


def test_a_block_goes_as_a_whole_when_its_other_component_is_gone_already(pico: Bench) -> None:
    first = pico.plan(drop(component="generation", drop=[1])).plan
    graph, _ = pico.rework(first.edits)
    plan = drop(drop=[1, 2]).plan(graph, Statistics()).plan
    assert [type(edit) for edit in plan.edits] == [DropBlock, DropBranch, DropBranch]


@pytest.mark.parametrize(("score", "expected"), [("first", [0, 1]), ("last", [3, 4]), ("random", None)])
def test_baselines(pico: Bench, score: str, expected: list[int] | None) -> None:
    step = drop(unit="attention", score=score, drop_count=2, seed=5)
    assert not step.needs()
    expected = expected or sorted(random.Random("5/understanding/attention").sample(range(5), 2))
    assert dropped(pico.plan(step).plan.edits) == [f"layers.{i}" for i in expected]


def test_random_follows_its_seed(pico: Bench) -> None:
    picks = [
        dropped(pico.plan(drop(score="random", drop_count=2, seed=seed)).plan.edits) for seed in range(8)
    ]
    again = [
        dropped(pico.plan(drop(score="random", drop_count=2, seed=seed)).plan.edits) for seed in range(8)
    ]
    assert picks == again and len({tuple(pick) for pick in picks}) > 1


def test_a_list_says_it_all(pico: Bench) -> None:
    step = drop(unit="feed_forward", drop=[4, 1])
    assert not step.needs()
    assert dropped(pico.plan(step).plan.edits) == ["layers.1", "layers.4"]


def test_layers_outside_the_range_stay(pico: Bench) -> None:
    scores = direct_scores(pico, "attention", 0)
    plan = pico.plan(drop(unit="attention", layers="1,3-4", drop_count=2)).plan
    assert set(dropped(plan.edits)) == {
        f"layers.{i}" for i in sorted([1, 3, 4], key=lambda i: -scores[i])[:2]
    }
    assert len(plan.evidence) == 3


@pytest.mark.parametrize("unit", ["block", "attention", "feed_forward"])
@pytest.mark.parametrize("layers", ["all", "0,2-4"])
def test_greedy_equals_dropping_one_by_one_on_real_copies(pico: Bench, unit: str, layers: str) -> None:
    step = drop(unit=unit, greedy=True, drop_count=3, layers=layers)
    left = list(range(5))
    allowed = set(range(5)) if layers == "all" else {0, 2, 3, 4}
    kinds: Any = ["attention", "feed_forward"] if unit == "block" else [unit]
    gone: list[int] = []
    for _ in range(3):
        edits = [
            DropBranch(block=f"layers.{i}", branch=k, component="understanding") for i in gone for k in kinds
        ]
        model = pico.rework(edits)[0].model
        score = {}
        for i in left:
            probe = Walked(model, pico)
            score[i] = probe.cosine(i, unit)
        best = max((i for i in left if i in allowed), key=lambda i: score[i])
        gone.append(best)
        left.remove(best)
    assert sorted(set(dropped(pico.plan(step).plan.edits))) == [f"layers.{i}" for i in sorted(gone)]


class Walked:
    """Cosines on an edited copy, taken with plain hooks around what the block's code calls."""

    def __init__(self, model: Any, pico: Bench) -> None:
        self.model, self.pico = model, pico

    def cosine(self, index: int, unit: str) -> float:
        block = self.model.layers[index]
        streams: list[Any] = []
        middles: list[Any] = []
        hooks = [block.register_forward_hook(lambda _m, args, out: streams.append((args[0], out[0])))]
        for name in ("post_attention_layernorm",):
            if hasattr(block, name):
                norm = getattr(block, name)
                hooks.append(norm.register_forward_pre_hook(lambda _m, args: middles.append(args[0])))
        self.pico.feed(self.model)
        for hook in hooks:
            hook.remove()
        pairs = []
        for number, (before, after) in enumerate(streams):
            if unit == "block":
                pairs.append((before, after))
            else:
                middle = middles[number] if middles else after
                pairs.append((before, middle) if unit == "attention" else (middle, after))
        return mean_cosine([(x.detach(), y.detach()) for x, y in pairs])


def test_greedy_is_not_one_shot() -> None:
    def choice(seed: int, greedy: bool) -> list[str]:
        step = drop(unit="attention", drop_count=2, greedy=greedy)
        return dropped(bench(seed, calls=1, depth=4).plan(step).plan.edits)

    assert any(choice(seed, True) != choice(seed, False) for seed in range(12))


def test_greedy_finds_its_blocks_again_after_they_were_renumbered() -> None:
    pico = bench(depth=5)
    generation = tuple(
        DropBranch(block=f"layers.{i}", branch=kind, component="generation")
        for i in range(5)
        for kind in ("attention", "feed_forward")
    )
    graph, _ = pico.rework(generation)
    pico = Bench(graph.model, graph, pico.feeds)
    left, gone = list(range(5)), list[int]()
    for _ in range(3):
        model = pico.rework([DropBlock(block=f"layers.{i}") for i in gone])[0].model
        probe = Walked(model, pico)
        best = max(range(len(left)), key=lambda at: probe.cosine(at, "block"))
        gone.append(left.pop(best))
    plan = pico.plan(drop(greedy=True, drop_count=3)).plan
    assert plan.edits == tuple(DropBlock(block=f"layers.{i}") for i in sorted(gone))


def test_planning_writes_nothing(pico: Bench) -> None:
    before = {name: value.clone() for name, value in pico.model.state_dict().items()}
    classes = [type(module) for module in pico.model.modules()]
    pico.plan(drop(greedy=True, drop_count=2))
    assert all(before[name].equal(value) for name, value in pico.model.state_dict().items())
    assert [type(module) for module in pico.model.modules()] == classes


def test_keeping_everything_is_the_identity(pico: Bench) -> None:
    step = drop(keep_ratio=1.0)
    assert not step.needs() and pico.plan(step).plan.edits == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_ratio": 0.95}, "rounds to dropping none"),
        ({"drop_count": 5}, "nothing would stay"),
        ({"keep_ratio": 0.05}, "nothing would stay"),
        ({"drop": [5]}, r"no block parts of this component in layers \[5\]"),
        ({"layers": "3-6", "drop_count": 1}, "no layer 5, 6"),
        ({"stack": "visoin", "drop_count": 1}, "did you mean 'vision'"),
        ({"stack": "vision", "component": "generation", "drop_count": 1}, "component: understanding"),
        ({"component": None, "drop_count": 1}, "name one of generation, understanding"),
        ({"component": "shared", "stack": "vision", "drop_count": 1}, "component: understanding"),
    ],
)
def test_impossible_wishes(pico: Bench, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        drop(**options).plan(pico.graph, Statistics(dry=True))


def test_the_only_component_need_not_be_named(pico: Bench) -> None:
    step = LayerDrop(stack="vision", score="last", drop_count=1)
    assert step.plan(pico.graph, Statistics()).plan.edits == (DropBlock(block="vision.1"),)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"keep_ratio": 0.5, "drop_count": 2},
        {"drop_count": 1, "drop": [0]},
        {"drop": []},
        {"drop": [1, 1]},
        {"drop": [-1]},
        {"drop_count": 0},
        {"keep_ratio": 0},
        {"keep_ratio": 1.1},
        {"greedy": True, "score": "last", "drop_count": 1},
        {"greedy": True, "drop": [1]},
        {"keep_ratio": 0.5, "unit": "head"},
    ],
)
def test_contradictions_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        drop(**options)


def test_a_dry_run_has_the_right_number(pico: Bench) -> None:
    for greedy in (False, True):
        plan = (
            drop(unit="attention", keep_ratio=0.6, greedy=greedy).plan(pico.graph, Statistics(dry=True)).plan
        )
        assert len(plan.edits) == 2


@given(st.integers(1, 400), st.integers(1, 1000))
def test_the_count_is_exact(total: int, thousandths: int) -> None:
    exact = (1 - Fraction(thousandths, 1000)) * total
    count = dropped_count(total, thousandths / 1000)
    assert abs(count - exact) <= Fraction(1, 2) and count - exact != Fraction(-1, 2)


def test_float_error_loses_no_layer() -> None:
    assert [dropped_count(10, ratio) for ratio in (0.7, 0.9, 0.3, 0.75)] == [3, 1, 7, 3]
    assert int((1 - 0.9) * 10) == 0  # what truncation made of it


def test_permuting_the_calibration_items_changes_no_choice(pico: Bench) -> None:
    step = drop(unit="feed_forward", drop_count=2)
    original = list(pico.feeds)
    plans = []
    for order in permutations(original):
        pico.feeds = list(order)
        plans.append(pico.plan(step).plan.edits)
    pico.feeds = original
    assert len(set(plans)) == 1


def test_branches_that_cannot_be_told_apart_are_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    pico = bench(depth=5)
    known = pico.graph.branches

    def twice(*args: Any, **query: Any) -> Any:
        found = known(*args, **query)
        return (*found[:2], *found[1:])

    monkeypatch.setattr(pico.graph, "branches", twice)
    plan = drop(unit="attention", score="first", drop_count=2).plan(pico.graph, Statistics()).plan
    assert dropped(plan.edits) == ["layers.0", "layers.2"]
    assert [refusal.site for refusal in plan.declined] == ["layers.1"]
