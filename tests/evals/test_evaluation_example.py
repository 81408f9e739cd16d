"""The evaluation of docs/my_evaluation.py: validated, run by the command line on a model, scored as counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_runners import Scripted
from PIL import Image
from places import DOCS

from umcompress.cli.main import main
from umcompress.errors import RecipeError, UsageError
from umcompress.extend import Evaluation, find_evaluation, find_pass
from umcompress.recipe.recipe import parse_recipe

NAME = "my_evaluation.py:OneWord"
ROWS = [
    ("existence", "is there a circle?", "yes"), ("existence", "is there a square?", "no"), ("count", "how many?", "1"),
]  # fmt: skip


def write_questions(folder: Path) -> Path:
    """A white picture, and three questions about it."""
    Image.new("RGB", (36, 36), "white").save(folder / "white.png")
    rows = [{"image": "white.png", "kind": kind, "question": asked, "answer": said} for kind, asked, said in ROWS]
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def one_word(data: Path) -> Evaluation:
    return find_evaluation(NAME, DOCS)(data=data)  # type: ignore[call-arg]


def test_right_words_are_counted_by_kind(tmp_path: Path) -> None:
    said: list[str] = []
    runner = Scripted(lambda question: " Yes" if "circle" in question else "1")
    score = one_word(write_questions(tmp_path)).run(runner, tmp_path / "out", said.append)["understanding"]
    assert score.value == pytest.approx(2 / 3) and score.n == 3
    assert {kind: part.value for kind, part in score.by_kind.items()} == {"existence": 0.5, "count": 1.0}
    rows = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert [row["right"] for row in rows] == [True, False, True]
    assert said[-1].endswith("3 of 3 questions")


def test_the_command_line_runs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = f"{DOCS / NAME}:data={write_questions(tmp_path)}"
    assert main(["evaluate", "bagel-mini", "--evaluation", named, "--format", "json"]) == 0
    step = json.loads(capsys.readouterr().out)["steps"][0]
    assert step["scores"]["understanding"]["n"] == 3
    assert set(step["scores"]["understanding"]["by_kind"]) == {"existence", "count"}


def test_its_options_are_checked_like_any_others() -> None:
    recipe = f"model: bagel-mini\nevaluate:\n  - {NAME}: {{data: a, new_tokens: 0}}\nsteps: []\n"
    with pytest.raises(RecipeError, match=r"mine.yaml:3[\s\S]*new_tokens"):
        parse_recipe(recipe, "mine.yaml", find_pass, lambda name: find_evaluation(name, DOCS))


def test_what_is_missing_is_said_before_the_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        one_word(tmp_path / "questions.jsonl").check()
    data = write_questions(tmp_path)
    one_word(data).check()
    (tmp_path / "white.png").unlink()
    with pytest.raises(UsageError, match=r"white\.png"):
        one_word(data).check()
