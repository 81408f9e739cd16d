"""A pass or an evaluation of the user's that raises or returns something else: what, in which line, in words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from umcompress.cli.main import main
from umcompress.errors import PlanError, UmcompressError
from umcompress.extend.registry import find_evaluation, find_pass
from umcompress.extend.users_code import call

CODE = '''
import time
from typing import ClassVar
from umcompress.extend import Evaluation, Pass, PlanError, mean_score

class Own(Pass):
    """Does what it should not."""
    name: ClassVar[str] = "own"
    how: str = "divide"

    def needs(self):
        return 3

    def plan(self, graph, statistics):
        if self.how == "words":
            raise PlanError("cut", "nothing", "cut less")
        if self.how == "sleep":
            print("asleep", flush=True)
            time.sleep(600)
        if self.how == "none":
            return None
        return 1 / len("")

class Wrong(Evaluation):
    """Scores nothing well."""
    name: ClassVar[str] = "wrong"
    how: str = "number"

    def run(self, runner, out, progress):
        return {"number": 0.5, "key": {"reading": mean_score([1.0])}, "value": {"generation": 0.5}}[self.how]
'''


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(CODE, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("how", "method", "said"),
    [
        ("divide", "plan", "ZeroDivisionError: division by zero\n    in {file}, line 22: return 1 / len(\"\")"),
        ("none", "plan", "it returned None\n    in {file}, line 14"),
        ("none", "needs", "it returned int 3\n    in {file}"),
    ],
)  # fmt: skip
def test_an_error_of_a_pass_names_the_line(own: Path, how: str, method: str, said: str) -> None:
    given = find_pass("own.py:Own", own).model_validate({"how": how})
    with pytest.raises(UmcompressError) as caught:
        call(given, method, *[None, None][: 2 * (method == "plan")])
    assert caught.value.asked == f"{method} of the pass own"
    assert said.format(file=own / "own.py") in caught.value.found


def test_an_error_in_words_goes_on_as_it_is(own: Path) -> None:
    with pytest.raises(PlanError, match="cut less"):
        call(find_pass("own.py:Own", own).model_validate({"how": "words"}), "plan", None, None)


@pytest.mark.parametrize(("how", "said"), [("number", "float 0.5"), ("key", "'reading'"), ("value", "float 0.5 for")])
def test_an_evaluation_returns_scores(own: Path, how: str, said: str) -> None:
    with pytest.raises(UmcompressError, match=f"returned .*{said}"):
        call(find_evaluation("own.py:Wrong", own).model_validate({"how": how}), "run", None, own, print)


def test_an_error_of_a_shipped_one_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    given = find_pass("layer_drop", None).model_validate({"component": "shared", "drop_count": 1})

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(type(given), "plan", broken)
    with pytest.raises(ZeroDivisionError):
        call(given, "plan", None, None)


@pytest.fixture
def recipe(own: Path) -> Callable[[str], Path]:
    def write(how: str) -> Path:
        needs = "" if how == "needs" else "\n    def needs(self): return ()\n"
        (own / "own.py").write_text(CODE.replace("\n    def needs(self):\n        return 3\n", needs), encoding="utf-8")
        (own / "r.yaml").write_text(f"model: bagel-mini\nsteps:\n  - {{pass: 'own.py:Own', how: {how}}}\n")
        return own / "r.yaml"

    return write


def test_the_traceback_is_shown_with_debug(
    recipe: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for given, shown in (["--debug", "plan"], True), (["plan", "--debug"], True), (["plan"], False):
        assert main([given[0], *given[1:], str(recipe("divide"))]) == 1
        said = capsys.readouterr().err
        assert "plan of the pass own\n  found: ZeroDivisionError" in said
        assert ("Traceback" in said) is shown


def test_a_run_that_is_terminated_ends_as_by_ctrl_c(recipe: Callable[[str], Path]) -> None:
    command = [sys.executable, "-m", "umcompress", "plan", str(recipe("sleep"))]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    assert running.stdout is not None and running.stderr is not None
    assert running.stdout.readline() == "asleep\n"
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 143
    assert "interrupted; the same command resumes" in running.stderr.read()
