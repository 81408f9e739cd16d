"""A run goes on only with the recipe, the code and the data that it began with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from umcompress.extend.registry import find_evaluation, find_pass
from umcompress.recipe.files import load_recipe
from umcompress.run.fingerprint import fingerprint
from umcompress.run.folder import RunFolder

PASS = '''
from typing import ClassVar
from umcompress.extend import Pass, Plan, Proposal

class Mine(Pass):
    """Nothing."""
    name: ClassVar[str] = "mine"

    def plan(self, graph, statistics):
        return Proposal(Plan(pass_name="mine"))
'''
EVALUATION = """
from typing import ClassVar
from umcompress.extend import Evaluation

class Mine(Evaluation):
    name: ClassVar[str] = "NAME"

    def run(self, runner, out, progress):
        return {}
"""
CODE = ("a_pass.py", "scores.py", "calibrates.py", "trains.py")
DATA = ("prompts.jsonl", "texts.jsonl", "own.jsonl", "scored.txt", "texts/text.txt")


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "recipes"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    (folder / "a_pass.py").write_text(PASS, encoding="utf-8")
    for name in CODE[1:]:
        (folder / name).write_text(EVALUATION.replace("NAME", name[:-3]), encoding="utf-8")
    Path("texts").mkdir()
    for name in DATA:
        Path(name).write_text("{}\n", encoding="utf-8")
    steps = [
        {"pass": "a_pass.py:Mine"},
        {"pass": "channel_prune", "keep_ratio": 0.5, "calibration": {"data": "own.jsonl"}},
        {"pass": "adapt", "source": "trains.py:Mine"}, {"pass": "router_train", "data": "texts.jsonl"},
        {"pass": "channel_prune", "keep_ratio": 0.9, "calibration": {"data": "prompts.jsonl"}},
    ]  # fmt: skip
    head = {
        "model": "m", "calibration": {"source": "calibrates.py:Mine"},
        "evaluate": ["scores.py:Mine", {"perplexity": {"data": "scored.txt"}}, {"agreement": {"data": "texts"}}],
    }  # fmt: skip
    file = folder / "recipe.yaml"
    file.write_text(json.dumps({**head, "steps": steps}), encoding="utf-8")
    return file


def made_of(recipe: Path, weights: str = "w") -> str:
    return fingerprint(load_recipe(str(recipe), find_pass, find_evaluation), weights)


@pytest.mark.parametrize("name", [*(f"recipes/{name}" for name in CODE), *DATA])
def test_each_file_of_the_users_counts(recipe: Path, name: str) -> None:
    before = made_of(recipe)
    assert made_of(recipe) == before
    with Path(name).open("a", encoding="utf-8") as file:
        file.write("\n")
    assert made_of(recipe) != before


def test_weights_count_and_other_files_do_not(recipe: Path) -> None:
    before = made_of(recipe)
    assert made_of(recipe, "others") != before
    Path("recipes/unused.py").write_text("", encoding="utf-8")
    assert made_of(recipe) == before


def test_another_version_makes_another_run(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer version may choose otherwise: what an older one left must not be gone on with."""
    before = made_of(recipe)
    monkeypatch.setattr("umcompress.run.fingerprint.version", lambda distribution: f"{distribution} 999")
    assert made_of(recipe) != before


def test_data_that_is_gone_is_somebody_elses_error(recipe: Path) -> None:
    before = made_of(recipe)
    Path("texts.jsonl").unlink()
    assert made_of(recipe) != before


def test_the_resolved_recipe_scores_with_the_seed_of_the_recipe(recipe: Path) -> None:
    """An evaluation that leaves its seed open runs with the recipe's; read back, it must not be the default."""
    content = json.loads(recipe.read_text(encoding="utf-8")) | {"seed": 5}
    content["evaluate"][2]["agreement"]["seed"] = 3
    recipe.write_text(json.dumps(content), encoding="utf-8")
    resolved = load_recipe(str(recipe), find_pass, find_evaluation).recipe.resolved()
    assert [options.get("seed") for one in resolved["evaluate"] for options in one.values()] == [None, 5, 3]
    before = made_of(recipe)
    recipe.write_text(json.dumps(resolved), encoding="utf-8")
    assert made_of(recipe) == before


def test_the_resolved_recipe_in_the_run_folder_is_the_same_run(recipe: Path) -> None:
    """It lies elsewhere, and its code and data are still found; the same from wherever the first was named."""
    before = made_of(recipe)
    run = RunFolder(Path("runs/one"))
    run.claim(load_recipe(str(recipe), find_pass, find_evaluation), before)
    assert made_of(run.path / "recipe.resolved.yaml") == before
    assert made_of(recipe.resolve()) == before
    Path("recipes/a_pass.py").write_text(PASS + "# changed", encoding="utf-8")
    assert made_of(run.path / "recipe.resolved.yaml") == made_of(recipe) != before
