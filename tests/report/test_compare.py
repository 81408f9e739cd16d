"""Comparing runs: what is comparable, what differs, who is beaten by nobody."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_fakes import report, step, task_score

from umcompress.documents.report import Report, Speed, Stopped, step_report
from umcompress.documents.scores import KindScore, score_of_counts
from umcompress.errors import UsageError
from umcompress.report import markdown, terminal
from umcompress.report.compare import Comparison, compare, dominates, faster_beyond_noise
from umcompress.report.compare_view import compare_view
from umcompress.report.recipe_differences import differences
from umcompress.report.table import Table


def ending(scores: tuple[float, float], size: int, speeds: tuple[float, float], **more: Any) -> Report:
    baseline = report().baseline
    last = step_report(step("01-cut", "cut", scores, size, speeds), baseline)
    return report(steps=(baseline, last), **more)


def test_pareto_marks_what_no_other_run_beats() -> None:
    better = ending((0.95, 0.9), 4_000_000, (1.2, 1.2))
    beaten = ending((0.94, 0.9), 4_000_000, (1.2, 1.1))
    smaller = ending((0.8, 0.7), 3_000_000, (1.0, 1.0))
    found = compare([("a", better), ("b", beaten), ("c", smaller)])
    assert [run.pareto for run in found.runs] == [True, False, True]
    assert "generation" in found.objectives
    assert "active parameters generation" in found.objectives
    assert "speed generation" in found.objectives


def test_what_noise_explains_beats_nobody() -> None:
    """A speed of 1.21 for 1.20, a score of 0.90 for 0.895 of a thousand: the smaller model is beaten by neither."""
    larger = ending((0.90, 0.9), 4_000_000, (1.21, 1.2))
    smaller = ending((0.895, 0.9), 3_000_000, (1.20, 1.2))
    assert [run.pareto for run in compare([("a", larger), ("b", smaller)]).runs] == [False, True]
    same_size = ending((0.90, 0.9), 3_000_000, (1.21, 1.2))
    assert [run.pareto for run in compare([("a", same_size), ("b", smaller)]).runs] == [True, True]


def test_timings_differ_beyond_what_both_spread() -> None:
    loud, quiet = Speed(ratio=1.3, noise=0.2), Speed(ratio=1.3, noise=0.01)
    assert not faster_beyond_noise(loud, Speed(ratio=1.1, noise=0.01))
    assert faster_beyond_noise(quiet, Speed(ratio=1.1, noise=0.01))
    assert not faster_beyond_noise(quiet, Speed(ratio=1.285))


def test_no_word_of_the_results_is_broken_at_80_columns() -> None:
    """The widest cells there are: partial scores, changes beyond noise, large speeds, a run that cannot be compared."""
    mark = {"partial": "9 of 10"}
    wide = {task: task_score(task, 0.55).model_copy(update=mark) for task in ("understanding", "generation")}
    baseline = report().baseline
    slower = step_report(step("01-cut", "cut", (0.5, 0.5), 40_000_000, (11.0, 111.25)), baseline)
    partial = slower.model_copy(update={"scores": wide, "evaluations": {"scenes": wide}})
    view = compare_view(compare([("a", report()), ("b", report(steps=(baseline, partial))), ("c", report(seed=7))]))
    table = terminal.text(view).splitlines()
    assert max(map(len, table)) <= 80
    assert any(line.split()[-1:] == ["Pareto"] for line in table)
    assert any(line.startswith("B ") and "~0.550" in line for line in table)
    assert any(line.startswith("C ") and line.rstrip().endswith("not comparable") for line in table)
    assert any(line.split()[:2] == ["B", "40.0M"] and line.split()[4:6] == ["11.00x", "111.25x"] for line in table)


def test_equal_runs_do_not_beat_each_other() -> None:
    assert [run.pareto for run in compare([("a", report()), ("b", report())]).runs] == [True, True]


def test_one_run_has_nobody_to_beat() -> None:
    (run,) = compare([("a", report())]).runs
    assert run.pareto is None
    assert run.changes == {}
    with pytest.raises(UsageError):
        compare([])


def test_changes_are_between_results() -> None:
    found = compare([("a", ending((0.95, 0.9), 10, (1, 1))), ("b", ending((0.95, 0.6), 10, (1, 1)))])
    change = found.runs[1].changes
    assert change["generation"].value == pytest.approx(-0.3)
    assert change["generation"].beyond_noise
    assert not change["understanding"].beyond_noise


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"seed": 7}, "seed 7, not 0"),
        ({"evaluations": {"scenes": {"limit": 10, "steps": 20}}}, "scenes.limit 10, not None"),
        ({"evaluations": {"other": {"limit": None}}}, "other.limit None, not -"),
    ],
)
def test_runs_that_were_asked_differently_are_not_compared(more: dict[str, Any], reason: str) -> None:
    found = compare([("a", report()), ("b", report(**more)), ("c", report())])
    other = found.runs[1]
    assert reason in other.reasons
    assert other.changes == {}
    assert [run.pareto for run in found.runs] == [True, None, True]
    assert f"B is not comparable with A: {reason}" in terminal.text(compare_view(found))


def test_a_score_on_other_items_is_not_compared() -> None:
    baseline = report().baseline
    fewer = {
        "understanding": task_score("understanding", 0.9, 100),
        "generation": baseline.scores["generation"],
    }
    found = compare([("a", report()), ("b", report(steps=(baseline.model_copy(update={"scores": fewer}),)))])
    assert found.runs[1].reasons == ("understanding was scored on 500 items, not 1000, or on other kinds",)
    none = {"understanding": baseline.scores["understanding"]}
    found = compare([("a", report()), ("b", report(steps=(baseline.model_copy(update={"scores": none}),)))])
    assert found.runs[1].reasons == ("generation was not scored",)


def texts(right: int, perplexity: float) -> dict[str, Any]:
    """What three evaluations of understanding said; the first is the task's score."""
    tasks = {"piqa": score_of_counts({"all": (right, 1000)}), "arc": score_of_counts({"all": (700, 1000)})}
    own = KindScore(value=perplexity, low=perplexity - 0.1, high=perplexity + 0.1, n=50)
    one = score_of_counts({"all": (50, 100)}).model_copy(update={"numbers": {"perplexity": own}})
    return {name: {"understanding": found} for name, found in {**tasks, "text": one}.items()}


def evaluated(right: int, perplexity: float, **more: Any) -> Report:
    baseline = report().baseline
    last = step("01-cut", "cut", (0.9, 0.9), 10, (1, 1), evaluations=texts(right, perplexity))
    return report(steps=(baseline, step_report(last, baseline)), **more)


def test_every_evaluation_and_number_is_compared() -> None:
    found = compare([("a", evaluated(900, 6.0)), ("b", evaluated(700, 9.0)), ("c", evaluated(900, 6.0, seed=1))])
    rows = {(row.evaluation, row.number): row for row in found.numbers}
    assert list(rows) == [("piqa", None), ("arc", None), ("text", None), ("text", "perplexity")]
    piqa = rows["piqa", None]
    assert [value.value for value in piqa.values if value] == [0.9, 0.7, 0.9]
    assert piqa.changes[0] is None and piqa.changes[2] is None
    assert piqa.changes[1] is not None
    assert piqa.changes[1].value == pytest.approx(-0.2) and piqa.changes[1].beyond_noise
    other = rows["arc", None].changes[1]
    assert other is not None and other.value == 0 and not other.beyond_noise
    lines = terminal.text(compare_view(found)).splitlines()
    assert any(line.split()[:6] == ["B", "0.700", "0.671", "to", "0.728", "-0.200*"] for line in lines)
    assert ["text", "perplexity", "6.000", "9.000*", "6.000"] in [line.split() for line in lines]


def test_what_only_one_run_was_asked_stands_beside_nothing() -> None:
    found = compare([("a", evaluated(900, 6.0)), ("b", report())])
    assert all(row.values[1] is None and row.changes[1] is None for row in found.numbers)
    assert compare([("a", report()), ("b", report())]).numbers == ()


def test_many_runs_are_held_against_the_first_a_table_at_a_time() -> None:
    found = compare([(name, evaluated(900, 6.0)) for name in "abcdefg"])
    tables = [part for part in compare_view(found, True) if isinstance(part, Table) and part.title == "Numbers"]
    heads = [[column.name for column in table.columns] for table in tables]
    assert heads == [["number", *"ABCDEF"], ["number", "A", "G"]]
    assert max(map(len, terminal.text(compare_view(found)).splitlines())) <= 80


def test_speeds_of_other_machines_decide_nothing() -> None:
    slow, fast = ending((0.9, 0.9), 10, (1, 1)), ending((0.9, 0.9), 10, (9, 9), device="cuda")
    found = compare([("a", slow), ("b", fast)])
    assert found.runs[1].speed_reasons == ("device cuda, not cpu",)
    assert not any("speed" in objective for objective in found.objectives)
    assert [run.pareto for run in found.runs] == [True, True]


def test_a_step_that_was_undone_is_not_the_result() -> None:
    baseline, first, second = report().steps
    undone = report(
        steps=(baseline, first, second.model_copy(update={"stopped": True})),
        stopped=Stopped(step=second.name, reason="generation fell"),
    )
    (run,) = compare([("a", undone)]).runs
    assert run.steps[run.result] == first
    assert "stopped at 02-channel_prune: generation fell" in terminal.text(
        compare_view(compare([("a", undone)]))
    )


def test_of_alternatives_the_one_that_is_written_is_compared() -> None:
    first, second = compare([("a", report(written="01-layer_drop")), ("b", report())]).runs
    assert first.steps[first.result].name == "01-layer_drop" and second.steps[second.result].name == "02-channel_prune"
    assert second.changes["generation"].value == pytest.approx(-0.32)


def test_recipe_differences_are_named_by_key() -> None:
    other = {
        "model": "bagel-mini",
        "output": "b",
        "steps": [{"pass": "layer_drop", "keep_ratio": 0.5}, {"pass": "x", "option": 1}],
    }
    found = compare([("a", report()), ("b", report(recipe=other)), ("c", report(recipe=None))])
    assert {(row.step, row.key): row.values for row in found.differences} == {
        (None, "model"): ("bagel-mini", "bagel-mini", "-"),
        ("layer_drop", "keep_ratio"): (0.75, 0.5, "-"),
        ("x", "option"): ("-", 1, "-"),
    }
    assert "the recipes say the same" in terminal.text(
        compare_view(compare([("a", report()), ("b", report())]))
    )


documents = st.recursive(
    st.one_of(st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2)),
    lambda inner: st.one_of(st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3),
                            st.lists(st.dictionaries(st.text("ab", min_size=1), inner), max_size=2)),
    max_leaves=6,
)  # fmt: skip
mappings = st.dictionaries(st.text("abc", min_size=1, max_size=2), documents, max_size=3)


@given(mappings, mappings)
def test_differences_find_every_difference_and_no_other(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert differences([one, one]) == ()
    assert bool(differences([one, other])) == (one != other)
    assert {row.key for row in differences([one, other])} == {row.key for row in differences([other, one])}


points = st.fixed_dictionaries({"a": st.integers(0, 3), "b": st.integers(0, 3)})


@given(points, points, points)
def test_dominance_is_a_strict_order(x: dict[str, float], y: dict[str, float], z: dict[str, float]) -> None:
    assert not dominates(x, x)
    assert not (dominates(x, y) and dominates(y, x))
    assert not (dominates(x, y) and dominates(y, z)) or dominates(x, z)


def test_tables_fit_80_columns_and_json_and_markdown_agree() -> None:
    long = [
        step(f"{n:02d}-a_rather_long_name", "x", (0.9, 0.9), 14_607_260_128, (12, 1))
        for n in range(3)
    ]
    runs = [
        ("runs/a", report()),
        ("runs/b", report(steps=(report().baseline, *long), seed=1)),
        ("c", report()),
    ]
    found = compare(runs)
    view = compare_view(found, True)
    tables = terminal.text(tuple(part for part in view if isinstance(part, Table)))
    assert max(map(len, tables.splitlines())) <= 80
    assert "A = runs/a (bagel-mini)" in terminal.text(view)
    assert Comparison.model_validate(json.loads(json.dumps(found.json_values()))) == found
    assert "| A | 0.950 | 0.932 to 0.960 |" in markdown.text(view)
