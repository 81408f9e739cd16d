"""head_prune: scores from plain float64, counts a group, and plans that apply."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pico_passes import Bench, bench, inputs_of
from pydantic import ValidationError

from umcompress.documents.plan import KeepHeads
from umcompress.errors import PlanError
from umcompress.extend import AttentionSite, Statistics
from umcompress.passes._common import kept_count
from umcompress.passes.head_prune import HeadPrune


@pytest.fixture(scope="module")
def pico() -> Bench:
    return bench(groups=4, per=3)


def prune(**options: Any) -> HeadPrune:
    return HeadPrune.model_validate({"component": "understanding", "keep_ratio": 0.5, **options})


def direct(pico: Bench, site: AttentionSite, score: str, unit: str) -> list[float]:
    """Head by head, with slices written out."""
    output = pico.graph.weight(f"{site.output}.weight").double()
    value = pico.graph.weight(f"{site.value}.weight").double()
    x, size, per = inputs_of(pico, site.output), site.head_dim, site.query_heads_per_group
    width = size * per if unit == "key_value_group" else size
    scores = []
    for start in range(0, output.shape[1], width):
        columns = output[:, start : start + width]
        group = start // (size * per)
        if score == "contribution":
            scores.append(float((x[:, start : start + width] @ columns.T).norm(dim=1).mean()))
        else:
            scores.append(float(value[group * size : (group + 1) * size].norm() * columns.norm()))
    return scores


@pytest.mark.parametrize("component", ["understanding", "generation"])
@pytest.mark.parametrize("unit", ["key_value_group", "query_head"])
@pytest.mark.parametrize("score", ["contribution", "magnitude"])
def test_the_strongest_heads_stay(pico: Bench, score: str, unit: str, component: str) -> None:
    plan = pico.plan(prune(component=component, score=score, unit=unit)).plan
    sites = pico.graph.attentions(component=component)
    assert len(plan.edits) == len(plan.evidence) == len(sites) == 3
    for site, edit, evidence in zip(sites, plan.edits, plan.evidence, strict=True):
        assert isinstance(edit, KeepHeads)
        scores = direct(pico, site, score, unit)
        assert evidence.scores == pytest.approx(scores, rel=1e-10)
        if unit == "key_value_group":
            expected = tuple(sorted(sorted(range(4), key=lambda i: -scores[i])[:2]))
            assert (edit.key_value_groups, edit.query_heads) == (expected, None)
        else:
            chosen = []
            for g in range(4):
                chosen += sorted(sorted(range(g * 3, g * 3 + 3), key=lambda i: -scores[i])[:2])
            assert (edit.query_heads, edit.key_value_groups) == (tuple(chosen), None)


@pytest.mark.parametrize("unit", ["key_value_group", "query_head"])
def test_the_plan_applies_to_the_model(pico: Bench, unit: str) -> None:
    model = pico.apply(pico.plan(prune(unit=unit, keep_ratio=0.34)))
    shape = (1 * 3 * 4, 12) if unit == "key_value_group" else (4 * 1 * 4, 12)
    assert model.layers[0].self_attn.q_proj.weight.shape == shape
    und, gen = model(*pico.feeds[0])
    assert und.isfinite().all() and gen.isfinite().all()


def test_random_is_seeded_by_site(pico: Bench) -> None:
    step = prune(score="random", seed=3)
    assert not step.needs()
    plan = pico.plan(step).plan
    draw = random.Random("3/understanding/layers.1.self_attn")
    assert plan.evidence[1].scores == tuple(draw.random() for _ in range(4))
    assert plan == pico.plan(step).plan
    assert pico.plan(prune(score="random", seed=3, layers="1")).plan.edits == plan.edits[1:2]
    assert len({pico.plan(prune(score="random", seed=seed)).plan.edits for seed in range(4)}) > 1


def test_refusals_are_recorded(pico: Bench) -> None:
    plan = pico.plan(prune(stack="all", unit="query_head", keep_ratio=0.34)).plan
    assert [refusal.site for refusal in plan.declined] == ["vision.0.self_attn", "vision.1.self_attn"]
    assert all("use unit: key_value_group" in refusal.reason for refusal in plan.declined)
    assert len(plan.edits) == 3


def test_an_attention_without_known_heads_is_declined(pico: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    known = pico.graph.attentions
    monkeypatch.setattr(pico.graph, "attentions", lambda **query: known(**query)[1:])
    plan = pico.plan(prune()).plan
    assert [(refusal.site, refusal.component) for refusal in plan.declined] == [("layers.0", "understanding")]


def test_selecting_nothing_is_an_error(pico: Bench) -> None:
    with pytest.raises(PlanError, match=r"keep_ratio 0.9 of 4 key_value_groups rounds to all"):
        pico.plan(prune(keep_ratio=0.9))


def test_keeping_everything_is_the_identity(pico: Bench) -> None:
    step = prune(keep_ratio=1.0)
    assert not step.needs() and pico.plan(step).plan.edits == ()


def test_a_dry_run_has_the_right_counts(pico: Bench) -> None:
    for unit in ("key_value_group", "query_head"):
        step = prune(unit=unit)
        dry, real = step.plan(pico.graph, Statistics(dry=True)).plan, pico.plan(step).plan
        for one, other in zip(dry.edits, real.edits, strict=True):
            assert isinstance(one, KeepHeads) and isinstance(other, KeepHeads)
            assert len(one.query_heads or one.key_value_groups or ()) == len(
                other.query_heads or other.key_value_groups or ()
            )


def test_planning_writes_nothing(pico: Bench) -> None:
    before = {name: value.clone() for name, value in pico.model.state_dict().items()}
    pico.plan(prune())
    pico.plan(prune(score="magnitude"))
    assert all(before[name].equal(value) for name, value in pico.model.state_dict().items())


@pytest.mark.parametrize(
    "options", [{"keep_ratio": 0}, {"keep_ratio": 1.5}, {"unit": "head"}, {"score": "cosine"}]
)
def test_values_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        prune(**options)


@given(st.integers(1, 64), st.integers(1, 1000), st.integers(1, 8))
def test_kept_counts_are_the_nearest_multiple(total: int, thousandths: int, multiple: int) -> None:
    ratio = thousandths / 1000
    count = kept_count(total, ratio, multiple)
    assert 1 <= count <= total
    assert count == total or count % multiple == 0
    if multiple == 1 and thousandths * total >= 1000:
        assert abs(2000 * count - 2 * thousandths * total) <= 1000
    if ratio == 1:
        assert count == total
