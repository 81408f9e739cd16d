"""A step is named by all that it depends on: the model, options, code and data; what has changed is said."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from umcompress.extend.registry import find_evaluation, find_pass
from umcompress.recipe.files import load_recipe
from umcompress.run.dependencies import Dependencies, changes
from umcompress.run.fingerprint import depending
from umcompress.run.folder import RunFolder

PASS = '''
import helper
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
    (folder / "helper.py").write_text("def late():\n    from deeper import of_helper\n", encoding="utf-8")
    (folder / "deeper").mkdir()
    (folder / "deeper" / "of_helper.py").touch()
    monkeypatch.syspath_prepend(folder)
    for name in ("helper", "deeper"):  # of another test's folder
        monkeypatch.delitem(sys.modules, name, raising=False)
    Path("texts").mkdir()
    for name in DATA:
        Path(name).write_text("{}\n", encoding="utf-8")
    Path("own.jsonl").write_text('{"image": "own.png", "question": "?"}\n', encoding="utf-8")
    Path("own.png").write_bytes(b"a picture")
    steps = [
        {"pass": "a_pass.py:Mine"},
        {"pass": "channel_prune", "keep_ratio": 0.5, "calibration": {"data": "../own.jsonl"}},
        {"pass": "adapt", "source": "trains.py:Mine"}, {"pass": "router_train", "data": "../texts.jsonl"},
        {"pass": "channel_prune", "keep_ratio": 0.9, "calibration": {"data": "../prompts.jsonl"}},
    ]  # fmt: skip
    head = {
        "model": "m", "calibration": {"source": "calibrates.py:Mine"},
        "evaluate": ["scores.py:Mine", {"perplexity": {"data": "../scored.txt"}}, {"agreement": {"data": "../texts"}}],
    }  # fmt: skip
    file = folder / "recipe.yaml"
    file.write_text(json.dumps({**head, "steps": steps}), encoding="utf-8")
    return file


def depends(recipe: Path, weights: str = "sha256:w", options: tuple[str, ...] = ()) -> Dependencies:
    return depending(load_recipe(str(recipe), find_pass, find_evaluation, options), {"the model's weights": weights})


def made_of(recipe: Path, weights: str = "sha256:w") -> str:
    return depends(recipe, weights).fingerprint()


def unchanged(before: Dependencies, now: Dependencies) -> int:
    """How many steps, the baseline first, are still what they were."""
    same = [old == new for old, new in zip(before.keys(), now.keys(), strict=True)]
    assert same == sorted(same, reverse=True)
    return sum(same)


# With each file: how many of the baseline and the five steps do not depend on it.
FILES = {
    "recipes/a_pass.py": 1, "recipes/helper.py": 1, "recipes/deeper/of_helper.py": 1, "recipes/scores.py": 0,
    "recipes/calibrates.py": 1, "recipes/trains.py": 3, "prompts.jsonl": 5, "texts.jsonl": 4, "own.jsonl": 2,
    "own.png": 2, "scored.txt": 0, "texts/text.txt": 0,
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_each_file_of_the_users_counts_for_the_steps_that_use_it(recipe: Path, name: str) -> None:
    before = depends(recipe)
    assert depends(recipe) == before
    with Path(name).open("a", encoding="utf-8") as file:
        file.write("\n")
    now = depends(recipe)
    assert unchanged(before, now) == FILES[name]
    assert any(Path(name).name in line and line.endswith("has changed") for line in changes(before, now))


def test_a_changed_option_is_named_and_leaves_the_steps_before_it(recipe: Path) -> None:
    before, now = depends(recipe), depends(recipe, options=("steps.1.keep_ratio=0.25", "output=elsewhere"))
    assert unchanged(before, now) == 2
    assert changes(before, now) == ["step 02-channel_prune: keep_ratio: 0.5 before, 0.25 now"]
    assert unchanged(before, depends(recipe, options=("seed=1",))) == 0


def test_a_step_that_starts_elsewhere_does_not_depend_on_the_one_before(recipe: Path) -> None:
    aside = ("steps.2.after=baseline",)
    before, now = depends(recipe, options=aside), depends(recipe, options=(*aside, "steps.1.keep_ratio=0.25"))
    same = [old == new for old, new in zip(before.keys(), now.keys(), strict=True)]
    assert same == [True, True, False, True, True, True]


def test_weights_count_and_other_files_do_not(recipe: Path) -> None:
    before = made_of(recipe)
    assert made_of(recipe, "sha256:others") != before
    Path("recipes/unused.py").write_text("", encoding="utf-8")
    assert made_of(recipe) == before


def test_another_version_makes_another_run(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer version may choose otherwise: what an older one left must not be gone on with."""
    before = depends(recipe)
    monkeypatch.setattr("umcompress.run.fingerprint.version", lambda distribution: f"{distribution} 999")
    assert made_of(recipe) != before.fingerprint()
    lines = changes(before, depends(recipe))
    assert any(line.startswith("torch: ") and line.endswith("torch 999 now") for line in lines)


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
    run = RunFolder(Path("runs/one"), depends(recipe))
    run.claim(load_recipe(str(recipe), find_pass, find_evaluation))
    assert made_of(run.path / "recipe.resolved.yaml") == before
    assert made_of(recipe.resolve()) == before
    Path("recipes/a_pass.py").write_text(PASS + "# changed", encoding="utf-8")
    assert made_of(run.path / "recipe.resolved.yaml") == made_of(recipe) != before
