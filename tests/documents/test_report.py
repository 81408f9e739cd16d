"""The report document: intervals, changes, flags, gates, reading and writing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from report_fakes import report, step, task_score
from scipy.stats import binomtest

from umcompress.documents.base import Task
from umcompress.documents.gate import Gate
from umcompress.documents.intervals import wilson
from umcompress.documents.report import Report, check_gate, read_report, step_report, write_report
from umcompress.documents.scores import KindScore, Score, change, is_beyond_noise, proportion, score_of_counts
from umcompress.errors import UsageError

counts = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts)
def test_wilson_is_scipys(count: tuple[int, int]) -> None:
    right, n = count
    expected = binomtest(right, n).proportion_ci(0.95, "wilson")
    low, high = wilson(right, n)
    assert low == pytest.approx(expected.low, abs=1e-12)
    assert high == pytest.approx(expected.high, abs=1e-12)
    assert 0 <= low <= right / n <= high <= 1


@pytest.mark.parametrize(("right", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_proportion(right: int, n: int) -> None:
    with pytest.raises(ValueError, match="not a proportion"):
        wilson(right, n)


@given(counts, counts)
def test_a_change_has_its_mirror_image(one: tuple[int, int], other: tuple[int, int]) -> None:
    there, back = change(proportion(*one), proportion(*other)), change(proportion(*other), proportion(*one))
    assert there.low == pytest.approx(-back.high)
    assert there.low <= there.value <= there.high
    assert there.beyond_noise == back.beyond_noise


def test_the_difference_of_two_proportions_is_newcombes() -> None:
    # Newcombe 1998, table II, method 10: 56/70 against 48/80 is 0.2000 with limits 0.0524 and 0.3339.
    found = change(proportion(56, 70), proportion(48, 80))
    assert found.low == pytest.approx(0.0524, abs=1e-4)
    assert found.high == pytest.approx(0.3339, abs=1e-4)
    assert found.beyond_noise


def test_noise() -> None:
    assert not is_beyond_noise(proportion(190, 200), proportion(188, 200))
    assert is_beyond_noise(proportion(190, 200), proportion(150, 200))
    assert not is_beyond_noise(proportion(5, 9), proportion(5, 9))


def test_mean_of_kinds_and_of_items() -> None:
    parts = {"a": (10, 10), "b": (0, 30)}
    kinds, items = score_of_counts(parts, {"a": 0.5, "b": 0.1}, "kinds"), score_of_counts(parts, {"a": 0.5}, "items")
    assert (kinds.value, kinds.n) == (0.5, 40)
    assert kinds.chance == pytest.approx(0.3)
    assert (items.value, items.n, items.chance) == (0.25, 40, None)
    assert (items.low, items.high) == wilson(10, 40)
    assert items.by_kind["b"] == proportion(0, 30)
    # With one kind the two ways agree.
    assert score_of_counts({"a": (7, 9)}, average="kinds").value == score_of_counts({"a": (7, 9)}).value
    with pytest.raises(ValueError, match="at least one kind"):
        score_of_counts({})


def test_the_interval_of_a_mean_narrows_as_theory_says() -> None:
    one, four = (
        score_of_counts({"a": (50, 100)}, average="kinds"),
        score_of_counts(dict.fromkeys("abcd", (50, 100)), average="kinds"),
    )
    assert one.high - one.low == pytest.approx(2 * (four.high - four.low))


def test_a_score_holds_its_value() -> None:
    with pytest.raises(ValidationError, match="does not hold"):
        KindScore(value=0.5, low=0.6, high=0.7, n=3)


def test_changes_are_against_the_baseline_and_the_row_above() -> None:
    baseline, first, second = report().steps
    assert baseline.changes == {}
    assert second.changes["generation"] == change(second.scores["generation"], baseline.scores["generation"])
    assert second.previous["generation"] == change(second.scores["generation"], first.scores["generation"])
    assert second.changes["generation"].beyond_noise
    assert not second.changes["understanding"].beyond_noise


def test_a_cut_that_buys_no_speed_is_marked() -> None:
    baseline, first, second = report().steps
    # Understanding went 1.11 -> 1.115 for a fifth less work; generation 1.00 -> 1.00, then 1.15.
    assert first.flags == ("no_speed:generation",)
    assert second.flags == ("no_speed:understanding",)
    untouched = step("01-x", "x", (0.9, 0.9), baseline.parameters.total, (0.9, 0.9))
    assert step_report(untouched, baseline).flags == ()


def test_noise_of_timings_widens_the_mark() -> None:
    baseline = report().baseline
    faster = step("01-x", "x", (0.9, 0.9), 5_000_000, (1.1, 1.1))
    noisy = faster.model_copy(
        update={"speed": {t: s.model_copy(update={"noise": 0.2}) for t, s in faster.speed.items()}}
    )
    assert step_report(faster, baseline).flags == ()
    assert len(step_report(noisy, baseline).flags) == 2


def test_gates() -> None:
    baseline: dict[Task, Score] = {"understanding": task_score("understanding", 0.95)}
    now: dict[Task, Score] = {"understanding": task_score("understanding", 0.90)}
    (exact,) = check_gate(Gate(understanding_drop=0.05), now, baseline)
    assert exact.passed
    assert exact.drop == pytest.approx(0.05)
    # The whole interval has to be above the limit: 0.05 (0.027 to 0.073) may be a drop of 0.04.
    (open_,) = check_gate(Gate(understanding_drop=0.04), now, baseline)
    assert open_.passed and open_.low is not None and 0.02 < open_.low < 0.04
    (closed,) = check_gate(Gate(understanding_drop=0.02), now, baseline)
    assert not closed.passed
    with pytest.raises(UsageError, match="no evaluation of the recipe scores generation"):
        check_gate(Gate(generation_drop=0.1), now, baseline)


def test_report_survives_the_disk(tmp_path: Path) -> None:
    written = report()
    file = write_report(written, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert read_report(tmp_path) == written == read_report(file)
    steps = json.loads(file.read_text())["steps"]
    assert [one["pass"] for one in steps] == [None, "layer_drop", "channel_prune"]
    assert {"value", "low", "high", "by_kind"} <= steps[0]["scores"]["understanding"].keys()
    assert steps[2]["parameters"]["active"]["generation"] == 4_700_000 // 3
    assert steps[2]["speed"]["generation"]["ratio"] == 1.15


def test_result_is_the_last_step_that_stands() -> None:
    baseline, first, second = report().steps
    undone = second.model_copy(update={"stopped": True})
    assert report(steps=(baseline, first, undone)).result == first
    with pytest.raises(ValidationError):
        report(steps=())


def test_reports_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_report(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"folder without report\.json"):
        read_report(tmp_path)
    for text in (
        "{",
        '{"steps": []}',
        '"x"',
        report().dumps().replace("bagel-mini", "m").replace('"seed"', '"s"'),
    ):
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(UsageError, match="not a report"):
            read_report(tmp_path)
    (tmp_path / "report.json").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="cannot be read"):
        read_report(tmp_path)


def test_report_has_no_field_that_is_lost() -> None:
    assert Report.model_validate(report().json_values()) == report()


def test_the_schema_of_reports_names_every_key_that_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    from umcompress.cli.main import main

    assert main(["schema", "--report"]) == 0
    schema = json.loads(capsys.readouterr().out)
    written = report().json_values()
    assert set(written) == set(schema["properties"]) and written["format"] == 3
    assert set(written["steps"][0]) == set(schema["$defs"]["StepReport"]["properties"])
    assert "lower_is_better" in schema["$defs"]["Score"]["properties"]


def test_a_report_of_the_first_format_is_read(tmp_path: Path) -> None:
    plain = report().json_values() | {"format": 1}
    for row in plain["steps"]:
        for score in [*row["scores"].values(), *(one for of in row["evaluations"].values() for one in of.values())]:
            for key in ("lower_is_better", "items", "items_of"):
                score.pop(key)
        for one in [*row["changes"].values(), *row["previous"].values()]:
            one.pop("paired"), one.pop("relative")
    (tmp_path / "report.json").write_text(json.dumps(plain))
    found = read_report(tmp_path)
    assert found.format == 1 and found.steps == report().steps
