"""Paths in a recipe are seen from its folder, those of options from the current one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
from recipe_fakes import Cut

from umcompress.documents.base import Document
from umcompress.documents.file_names import RECIPE, RUN
from umcompress.errors import RecipeError
from umcompress.recipe.files import load_recipe
from umcompress.recipe.recipe import Calibration, Recipe
from umcompress.recipe.yaml_lines import Override


class Shelf(Document):
    """Has files of every kind."""

    name: ClassVar[str] = "shelf"
    data: str | None = None
    reference: str | None = None
    source: str = "quiz"
    file: Path | None = None
    more: tuple[Path, ...] = ()
    named: dict[str, Path] = {}
    inner: Calibration | None = None
    title: str = "text.txt"


TEXT = """\
model: {model}
output: out
calibration: {{data: texts.jsonl, samples: 2}}
evaluate:
  - shelf: {{data: ../q.txt, reference: llama, source: "own.py:Quiz", file: /abs.txt, more: [a.txt, b.txt],
             named: {{text.txt: c.txt}}, inner: {{data: d.txt}}, title: a.txt}}
sweep: {{calibration.data: [texts.jsonl, other.jsonl]}}
steps:
  - {{pass: cut, component: shared, keep_ratio: 1, calibration: {{samples: 3}}}}
  - {{pass: cut, component: shared, keep_ratio: 1, calibration: {{data: own.jsonl}}}}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe in `recipes/`, with its files beside it; the current folder is the one above."""
    for name in ("recipes/llama", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("texts.jsonl", "other.jsonl", "own.jsonl", "a.txt", "b.txt", "c.txt", "d.txt", "../q.txt", "own.py"):
        (tmp_path / "recipes" / name).write_text(name)
    (tmp_path / "recipes" / "r.yaml").write_text(TEXT.format(model="llama"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(file: str, *overrides: str) -> Recipe:
    def found(kind: type[Document]) -> Callable[[str, Path], type[Document]]:
        return lambda name, base: kind

    return load_recipe(file, found(Cut), found(Shelf), overrides).recipe


def test_every_path_is_seen_from_the_recipes_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = read("recipes/r.yaml")
    assert (recipe.model, recipe.output) == ("recipes/llama", "recipes/out")
    assert recipe.calibration.data == Path("recipes/texts.jsonl")
    (shelf,) = recipe.evaluate
    assert isinstance(shelf, Shelf)
    assert (shelf.data, shelf.reference, shelf.source) == ("q.txt", "recipes/llama", "recipes/own.py:Quiz")
    assert (shelf.file, shelf.more) == (Path("/abs.txt"), (Path("recipes/a.txt"), Path("recipes/b.txt")))
    assert (shelf.named, shelf.title) == ({"text.txt": Path("recipes/c.txt")}, "a.txt")
    assert shelf.inner is not None and shelf.inner.data == Path("recipes/d.txt")
    # A step that says nothing of data has the recipe's; another one its own.
    data = [recipe.calibration_of(step.pass_).data for step in recipe.steps]
    assert data == [Path("recipes/texts.jsonl"), Path("recipes/own.jsonl")]
    # As the recipe says it; as one in another folder would.
    given, there = recipe.resolved_in(), recipe.resolved_in(Path("elsewhere/run"))
    assert (given["model"], given["calibration"]["data"], given["output"]) == ("llama", "texts.jsonl", "out")
    assert given["evaluate"][0]["shelf"]["source"] == "own.py:Quiz"
    assert there["model"] == "../../recipes/llama"
    assert there["evaluate"][0]["shelf"]["more"] == ["../../recipes/a.txt", "../../recipes/b.txt"]
    assert there["steps"][1]["calibration"]["data"] == "../../recipes/own.jsonl"
    monkeypatch.chdir(project / "recipes")
    beside = read("r.yaml")
    assert (beside.model, beside.calibration.data, beside.output) == ("llama", Path("texts.jsonl"), "out")
    monkeypatch.chdir(project / "elsewhere")
    assert read("../recipes/r.yaml").model == "../recipes/llama"
    assert read(str(project / "recipes" / "r.yaml")).calibration.data == project / "recipes" / "texts.jsonl"


def test_options_are_seen_from_the_current_folder(project: Path) -> None:
    (project / "here.jsonl").write_text("x")
    recipe = read(
        "recipes/r.yaml", "calibration.data=here.jsonl", "model=elsewhere", "evaluate.0.shelf.source=mine.py:Quiz",
        "evaluate.0.shelf.more=[q.txt]", "output=out", "steps.1={pass: mine.py:Cut, component: shared, keep_ratio: 1}",
    )
    (shelf,) = recipe.evaluate
    assert isinstance(shelf, Shelf)
    assert (recipe.model, recipe.output, recipe.calibration.data) == ("elsewhere", "out", Path("here.jsonl"))
    assert (shelf.source, shelf.more, shelf.data) == ("mine.py:Quiz", (Path("q.txt"),), "q.txt")
    assert recipe.steps[1].reference == "../mine.py:Cut"
    # Its own grid is the recipe's word, `--axis` an option.
    cell = Override("calibration.data=other.jsonl", "sweep: calibration.data", own=True)
    assert read("recipes/r.yaml", cell).calibration.data == Path("recipes/other.jsonl")
    assert read("recipes/r.yaml", "calibration.data=q.txt", cell).calibration.data == Path("recipes/other.jsonl")
    assert read("recipes/r.yaml", cell, "calibration.data=q.txt").calibration.data == Path("q.txt")


@pytest.mark.parametrize("model", ["bagel-mini", "someone/tiny"])
def test_names_are_no_paths(model: str, project: Path) -> None:
    (project / "bagel-mini").mkdir()
    (project / "recipes" / "r.yaml").write_text(TEXT.format(model=model))
    recipe = read("recipes/r.yaml")
    assert recipe.model == recipe.resolved_in(Path("elsewhere"))["model"] == model


def test_a_path_that_is_there_from_the_current_folder_alone_is_refused(project: Path) -> None:
    (project / "models" / "small").mkdir(parents=True)
    (project / "texts.jsonl").write_text("x")
    (project / "recipes" / "texts.jsonl").unlink()
    (project / "recipes" / "r.yaml").write_text(TEXT.format(model="models/small"))
    with pytest.raises(RecipeError) as caught:
        read("recipes/r.yaml")
    model, data = caught.value.problems
    assert (model.line, model.path, data.line, data.path) == (1, "model", 3, "calibration.data")
    assert "no recipes/models/small" in model.message and "seen from its folder" in model.message
    assert "write ../models/small" in model.hint and "--set model=models/small" in model.hint
    assert "write ../texts.jsonl" in data.hint and "--set calibration.data=texts.jsonl" in data.hint


def test_a_run_of_the_recipe_in_the_current_folder_is_not_begun_anew_elsewhere(project: Path) -> None:
    (project / "out").mkdir()
    read("recipes/r.yaml")
    (project / "out" / RUN).write_text("{}")
    (project / "out" / RECIPE).write_text("another")
    read("recipes/r.yaml")
    (project / "out" / RECIPE).write_text(TEXT.format(model="llama"))
    with pytest.raises(RecipeError, match="-o out") as caught:
        read("recipes/r.yaml")
    assert "write ../out" in caught.value.problems[0].hint


def test_behind_a_link_the_folder_above_is_the_real_one(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "deep" / "down").mkdir(parents=True)
    (project / "deep" / "texts").write_text("x")
    (project / "link").symlink_to(project / "deep" / "down", target_is_directory=True)
    (project / "deep" / "down" / "r.yaml").write_text(
        "model: m\ncalibration: {data: ../texts}\nsteps: [{pass: cut, component: shared, keep_ratio: 1}]"
    )
    data = read("link/r.yaml").calibration.data
    assert data is not None and data.read_text() == "x"
