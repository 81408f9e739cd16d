"""Rows that survive a kill, the time that is left, evaluations named on the command line, marks in the report."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from fake_runners import Scripted
from report_fakes import report
from torch import nn

from umcompress.documents.base import Task
from umcompress.documents.intervals import wilson
from umcompress.documents.report import StepReport
from umcompress.documents.scores import Score, headline, proportion, score_of_counts
from umcompress.errors import UsageError
from umcompress.evals._benchmark import Benchmark, Needed, ResumableLines, model_digest
from umcompress.extend.evaluation_options import chosen
from umcompress.progress import EVERY, Progress, Remaining, duration
from umcompress.report import terminal
from umcompress.report.report_view import evaluation_view

# -- rows ---------------------------------------------------------------------------------------------------------


def test_rows_are_on_disk_at_once_and_each_key_once(tmp_path: Path) -> None:
    lines = ResumableLines(tmp_path / "rows.jsonl")
    lines.append({"id": "a", "n": 1}, {"id": "b", "n": 2})
    assert (tmp_path / "rows.jsonl").read_text().count("\n") == 2
    lines.append({"id": "a", "n": 9}, {"id": "c", "n": 3})
    again = ResumableLines(tmp_path / "rows.jsonl")
    assert [again[key]["n"] for key in ("a", "b", "c")] == [1, 2, 3]
    assert "d" not in again and len(again) == 3


def test_a_line_cut_short_is_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    ResumableLines(path).append({"id": "a", "n": 1})
    with path.open("a") as file:
        file.write('{"id": "b", "n"')
    lines = ResumableLines(path)
    assert list(lines.rows) == ["a"]
    lines.append({"id": "b", "n": 2})
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"id": "a"}\nnonsense\n{"id": "b"}\n')
    (tmp_path / "rows.settings.json").write_text("{}\n")
    with pytest.raises(UsageError, match="line 2 is not JSON"):
        ResumableLines(tmp_path / "rows.jsonl")


def test_rows_of_killed_processes_are_put_together(tmp_path: Path) -> None:
    ResumableLines(tmp_path / "rows.jsonl").append({"id": "a"})
    (tmp_path / "rows.process1.jsonl").write_text('{"id": "b"}\n{"id": "c"')
    lines = ResumableLines(tmp_path / "rows.jsonl")
    assert list(lines.rows) == ["a", "b"]
    assert not (tmp_path / "rows.process1.jsonl").exists()
    lines.append({"id": "z"})
    assert [row["id"] for row in lines.finish(["b", "a"])] == ["b", "a"]
    assert [json.loads(line)["id"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == ["b", "a", "z"]


def test_rows_of_another_model_are_set_aside(tmp_path: Path) -> None:
    ResumableLines(tmp_path / "rows.jsonl", {"model": "x"}).append({"id": "a"})
    other = ResumableLines(tmp_path / "rows.jsonl", {"model": "y"})
    assert other.set_aside and not len(other)
    assert (tmp_path / "rows.jsonl.old").read_text() == '{"id": "a"}\n'


def test_a_model_is_known_by_its_weights() -> None:
    torch.manual_seed(0)
    model = nn.Linear(300, 200)
    first = model_digest(Scripted("", model=model))
    assert first == model_digest(Scripted("", model=model)) and model_digest(None) is None
    with torch.no_grad():
        model.bias.mul_(1.01)
    assert model_digest(Scripted("", model=model)) != first


class Doubles(Benchmark):
    """Twice each number."""

    name: ClassVar[str] = "doubles"
    needed: ClassVar[Needed] = Needed(files=("numbers.txt",), origin="here", size="1 kB", items=10)

    def run(self, runner: Any, out: Path, progress: Any) -> Any:
        raise NotImplementedError


def test_chunks_do_not_depend_on_what_is_done(tmp_path: Path) -> None:
    """Answers may differ by rounding with what shares a batch: so the batches stay what they are."""
    parts: list[list[int]] = []

    def work(items: Any) -> list[dict[str, Any]]:
        parts.append(list(items))
        return [{"id": str(item), "twice": 2 * item} for item in items]

    benchmark = Doubles()
    benchmark.collect(range(2), tmp_path, str, work, lambda text: None, chunk=4)
    rows = benchmark.collect(range(10), tmp_path, str, work, lambda text: None, chunk=4)
    assert parts == [[0, 1], [2, 3], [4, 5, 6, 7], [8, 9]]
    assert [row["twice"] for row in rows] == list(range(0, 20, 2))
    assert benchmark.partial(10) is None and benchmark.partial(9) == "9 of 10"
    with pytest.raises(UsageError, match="the same id"):
        benchmark.collect([1, 1], tmp_path, str, work, lambda text: None)


def test_seconds_are_those_of_all_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that work moves: 10 s an item, and 1 s a run before the first and after the last row."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.time", lambda: now[0])

    def run(items: range, broken: int | None = None, limit: int = 4) -> float | None:
        def work(part: Any) -> list[dict[str, Any]]:
            if broken in part:
                raise KeyboardInterrupt
            now[0] += 10 * len(part)
            return [{"id": str(item)} for item in part]

        started = now[0]
        now[0] += 1
        settings = {"limit": limit}
        Doubles().collect(items, tmp_path, str, work, lambda text: None, chunk=2, settings=settings)
        now[0] += 1
        return Doubles().timed(score_of_counts({"x": (1, 2)}), started, None, tmp_path).seconds

    with pytest.raises(KeyboardInterrupt):
        run(range(6), broken=4)
    now[0] += 500
    # Four items before, two now.
    assert run(range(6)) == pytest.approx(40 + 1 + 20 + 1)
    now[0] += 500
    assert run(range(6)) == pytest.approx(60 + 2)
    # Rows of other settings are set aside, and their seconds with them.
    now[0] += 500
    assert run(range(6), limit=5) == pytest.approx(1 + 60 + 1)


# -- time left ----------------------------------------------------------------------------------------------------


def test_the_time_left_is_from_this_run_without_its_first_chunk() -> None:
    now = [0.0]
    left = Remaining(total=100, done=40, clock=lambda: now[0])
    assert left.seconds() is None
    now[0] = 60.0  # loading, compiling: says nothing of the pace
    left.advance(10)
    assert left.seconds() is None
    now[0] = 70.0
    left.advance(10)
    assert left.seconds() == pytest.approx(40.0)
    now[0] = 110.0
    left.advance(20)
    assert left.seconds() == pytest.approx(50 / 30 * 20)


def test_durations() -> None:
    assert [duration(s) for s in (0.2, 45.4, 100, 3000, 11_100)] == ["1 s", "45 s", "2 min", "50 min", "3 h 05 min"]


def test_lines_of_progress_come_now_and_then() -> None:
    said: list[str] = []
    now = [0.0]
    with Progress("mme", "questions", 10, 2, said.append, clock=lambda: now[0]) as shown:
        for _ in range(7):
            now[0] += EVERY * 0.6
            shown.advance(1)
    assert said[0] == "mme: 10 questions (2 done before)"
    assert said[1:] == [
        "mme: 4 of 10 questions, about 54 s left", "mme: 6 of 10 questions, about 36 s left",
        "mme: 8 of 10 questions, about 18 s left",
    ]  # fmt: skip


# -- on the command line --------------------------------------------------------------------------------------------


def test_options_of_an_evaluation(tmp_path: Path) -> None:
    found = chosen([f"mme:data={tmp_path}/a,b,limit=20", "scenes", "mmmu:protocol=lm_eval,seed=4"], 3, 50)
    plain = [evaluation.json_values() for evaluation in found]
    assert (plain[0]["data"], plain[0]["limit"], plain[0]["seed"]) == (f"{tmp_path}/a,b", 20, 3)
    assert (plain[1]["limit"], plain[1]["seed"]) == (50, 3)
    assert (plain[2]["protocol"], plain[2]["seed"]) == ("lm_eval", 4)


def test_an_evaluation_of_the_users_own_with_options(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from typing import ClassVar\nfrom umcompress.extend import Evaluation\n\n\n"
        "class Mine(Evaluation):\n    name: ClassVar[str] = 'mine'\n    hard: bool = False\n\n"
        "    def run(self, runner, out, progress):\n        return {}\n"
    )
    assert chosen([f"{tmp_path}/mine.py:Mine:hard=true"], 0, None)[0].json_values() == {"hard": True}
    assert chosen([f"{tmp_path}/mine.py:Mine"], 0, None)[0].json_values() == {"hard": False}


@pytest.mark.parametrize(
    ("text", "found"),
    [("mme:dat=x", "did you mean 'data'"), ("mme:limit=0", "limit: Input should be greater than 0"),
     ("mme:limit=many", "limit: "), ("mmx:data=x", "did you mean 'mm"), ("mme:data=x,data=y", "given twice"),
     ("mmmu:protocol=mine", "protocol: Input should be 'reference' or 'lm_eval'"), ("mme:data", "unknown evaluation")],
)
def test_what_cannot_be_meant_is_explained(text: str, found: str) -> None:
    with pytest.raises(UsageError, match=found):
        chosen([text], 0, None)


def test_one_evaluation_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="named twice"):
        chosen(["mme", "mme:limit=3"], 0, None)


# -- in the report ------------------------------------------------------------------------------------------------


def test_a_mean_of_grades_has_an_interval_that_holds_it() -> None:
    low, high = wilson(7.3, 10)
    assert 0 < low < 0.73 < high < 1
    assert score_of_counts({"a": (1.5, 3), "b": (0.5, 1)}).value == 0.5


def test_the_first_evaluation_stands_for_the_task() -> None:
    one, two = score_of_counts({"a": (1, 2)}), score_of_counts({"a": (2, 2)})
    assert headline({"x": {"understanding": one}, "y": {"understanding": two, "generation": two}}) == {
        "understanding": one, "generation": two,
    }  # fmt: skip


def shown(evaluations: dict[str, Score]) -> str:
    scores: dict[str, dict[Task, Score]] = {name: {"understanding": part} for name, part in evaluations.items()}
    base = report().baseline
    step = StepReport(
        name="baseline", scores=headline(scores), evaluations=scores, parameters=base.parameters, bytes=base.bytes
    )
    out = io.StringIO()
    terminal.show(evaluation_view(report().model_copy(update={"steps": (step,)})), out, 80)
    return out.getvalue()


def test_what_is_published_and_what_is_partial_is_shown() -> None:
    mme = score_of_counts({"count": (3, 4)}).model_copy(update={
        "numbers": {"MME": proportion(3, 4).model_copy(update={"value": 2100.0, "low": 1500.0, "high": 2400.0})},
        "partial": "120 of 2374", "seconds": 75.0,
    })  # fmt: skip
    text = shown({"mme": mme, "pope": score_of_counts({"random": (9, 10)})})
    assert "~0.750" in text and "~ a part of mme only: 120 of 2374" in text
    lines = [line.split() for line in text.splitlines()]
    assert lines[lines.index(["MME", "2100.0"]) :][:3] == [["MME", "2100.0"], ["from", "1500.0"], ["to", "2400.0"]]
    assert "120 of 2374" in text and "mme understanding took 75.0s" in text
    assert "pope, understanding" in text and "random" in text
    whole = shown({"pope": score_of_counts({"random": (9, 10)})})
    assert "~" not in whole and "numbers" not in whole
    assert max(map(len, text.splitlines())) <= 80


def test_the_names_of_numbers_stay_readable_beside_many_steps() -> None:
    one = score_of_counts({"a": (3, 4)}).model_copy(update={"numbers": {"bits_per_byte": proportion(3, 4)}})
    base = report().baseline
    steps = tuple(
        StepReport(
            name=f"{index:02}-channel_prune" if index else "baseline", pass_="channel_prune" if index else None,
            scores={"understanding": one}, evaluations={"text": {"understanding": one}}, parameters=base.parameters,
            bytes=base.bytes,
        )
        for index in range(7)
    )  # fmt: skip
    out = io.StringIO()
    terminal.show(evaluation_view(report().model_copy(update={"steps": steps})), out, 80)
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "\nbits_per_byte" in text and "1 step left out" in text
