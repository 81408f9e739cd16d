"""The scorers against recorded results of the official programs; and that the check can fail."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from golden_check import main
from places import DATA, TESTS

FILES = {"geneval": "geneval.jsonl", "mme": "mme.json", "misc": "misc.json"}
INPUTS = {
    "id", "metadata", "detections", "options", "note", "columns", "tasks", "rows", "kind", "answer", "response", "text",
}  # fmt: skip


def check(kind: str, content: Any, folder: Path) -> tuple[int, str]:
    """The command's exit code and output for changed content."""
    path = folder / FILES[kind]
    lines = kind == "geneval"
    path.write_text("\n".join(map(json.dumps, content)) if lines else json.dumps(content), encoding="utf-8")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main([kind, str(path)])
    return code, out.getvalue()


def load(kind: str) -> Any:
    text = (DATA / FILES[kind]).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if kind == "geneval" else json.loads(text)


def expected(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all expected leaves: those below no input."""
    if isinstance(value, dict):
        return [p for key, below in value.items() if key not in INPUTS for p in expected(below, (*place, key))]
    if isinstance(value, list) and place:
        return [p for index, below in enumerate(value) for p in expected(below, (*place, index))] or [place]
    if isinstance(value, list):
        return [p for index, below in enumerate(value) for p in expected(below, (index,))]
    return [place]


def change(content: Any, place: tuple[Any, ...]) -> None:
    for key in place[:-1]:
        content = content[key]
    old = content[place[-1]]
    if isinstance(old, bool) or old is None:
        new: Any = not old
    elif isinstance(old, int | float):
        new = old + (1 if isinstance(old, int) else 0.001)
    else:
        new = ["more"] if isinstance(old, list) else f"{old}x"
    content[place[-1]] = new


@pytest.mark.parametrize("kind", FILES)
def test_every_recorded_result_is_met(kind: str, tmp_path: Path) -> None:
    code, text = check(kind, load(kind), tmp_path)
    assert code == 0 and "FAIL" not in text
    assert text.count("\n") > 100


@pytest.mark.parametrize("kind", FILES)
def test_any_changed_value_is_noticed(kind: str, tmp_path: Path) -> None:
    content = load(kind)
    places = expected(content)
    assert len(places) > 100
    for place in random.Random(0).sample(places, 40):
        changed = copy.deepcopy(content)
        change(changed, place)
        code, text = check(kind, changed, tmp_path)
        assert code == 1 and "FAIL" in text, place


@pytest.mark.parametrize(
    ("kind", "place"),
    [("geneval", (3, "expected")), ("geneval", (3,)), ("mme", ()), ("mme", ("cases", 0)),
     ("mme", ("cases", 1, "expected", "per_task", "count")), ("misc", ()), ("misc", ("mmmu", 2)),
     ("misc", ("mmbench_tables", 0, "expected")), ("misc", ("wise",)), ("misc", ("wise_judge_text", 0))],
)
def test_what_no_check_knows_fails(kind: str, place: tuple[Any, ...], tmp_path: Path) -> None:
    content = load(kind)
    here = content
    for key in place:
        here = here[key]
    here["something_new"] = 1
    assert check(kind, content, tmp_path)[0] == 1


def test_an_input_that_changes_the_result_is_noticed(tmp_path: Path) -> None:
    content = load("mme")
    row = content["cases"][0]["tasks"]["existence"][0]
    row[content["cases"][0]["columns"].index("raw_answer")] = "neither"
    assert check("mme", content, tmp_path)[0] == 1


def test_an_empty_file_is_no_success(tmp_path: Path) -> None:
    assert check("misc", {}, tmp_path)[0] == 1
    assert check("geneval", [], tmp_path)[0] == 1


def test_the_command_needs_neither_torch_nor_lm_eval() -> None:
    code = (
        "import runpy, sys; sys.argv = ['golden_check.py', 'misc', sys.argv[1]]\n"
        "try: runpy.run_path('golden_check.py', run_name='__main__')\n"
        "except SystemExit as done: assert done.code == 0, done.code\n"
        "assert not {'torch', 'lm_eval', 'numpy'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, str(DATA / "misc.json")]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
