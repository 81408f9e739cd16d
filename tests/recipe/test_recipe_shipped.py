"""Recipes with the real registry: those that ship are valid, and real passes give errors with lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from umcompress.errors import RecipeError
from umcompress.extend.registry import find_evaluation, find_pass
from umcompress.recipe.files import load_recipe, recipe_names
from umcompress.recipe.recipe import parse_recipe


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_valid(name: str) -> None:
    loaded = load_recipe(name, find_pass, find_evaluation)
    assert loaded.recipe.evaluate, "a shipped recipe shows what it costs"


def test_real_passes_report_at_their_lines() -> None:
    text = """\
model: bagel-mini
steps:
  - pass: layer_drop
    component: understandin
    unit: blok
    keep_ratio: 0.5
  - pass: channel_prune
    component: generation
    keep_ratio: 0.5
    layers: 9-x
    repair: biass
"""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "r.yaml", find_pass, find_evaluation)
    found = {problem.line: problem for problem in caught.value.problems}
    assert found.keys() == {4, 5, 10, 11}
    assert "did you mean 'understanding'?" in found[4].hint
    assert "did you mean 'block'?" in found[5].hint
    assert "9-x" in found[10].message
    assert "did you mean 'bias'?" in found[11].hint


def test_a_pass_of_ones_own_is_found_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from typing import ClassVar\n"
        "from umcompress.extend import Pass, Plan, Proposal\n\n"
        "class Nothing(Pass):\n"
        '    """Do nothing."""\n'
        '    name: ClassVar[str] = "nothing"\n'
        "    often: int = 1\n\n"
        "    def plan(self, graph, statistics):\n"
        "        return Proposal(Plan(pass_name=self.name))\n"
    )
    file = tmp_path / "r.yaml"
    file.write_text("model: m\nsteps:\n  - pass: own.py:Nothing\n    often: 3\n")
    recipe = load_recipe(str(file), find_pass, find_evaluation).recipe
    assert recipe.steps[0].name == "01-nothing"
    assert recipe.resolved()["steps"][0] == {"name": "01-nothing", "pass": "own.py:Nothing", "often": 3}
    file.write_text(
        "model: m\nsteps:\n  - pass: own.py:Nothin\n  - pass: gone.py:X\n"
        "  - {pass: own.py:Nothing, oftn: 3}\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(file), find_pass, find_evaluation)
    assert [problem.line for problem in caught.value.problems] == [3, 4, 5]
