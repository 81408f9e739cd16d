"""What README and docs show is true: recipes parse, commands exist, Python runs."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from places import ROOT

from umcompress.cli import parser as cli_parser
from umcompress.extend.registry import find_evaluation, find_pass
from umcompress.recipe.recipe import parse_recipe

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for number, text in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)):
            found.append((f"{page.name}-{number}", text))
    return found


@pytest.mark.parametrize(("where", "text"), blocks("yaml"), ids=lambda v: v if len(v) < 40 else "")
def test_recipes_parse(where: str, text: str) -> None:
    if "steps:" not in text:
        pytest.skip(f"{where} shows a part of a recipe")
    base = ROOT / "docs"
    recipe = parse_recipe(text, where, lambda n: find_pass(n, base), lambda n: find_evaluation(n, base))
    assert recipe.steps


def test_the_recipe_shown_is_the_one_shipped() -> None:
    assert (ROOT / "recipes" / "quickstart.yaml").read_text().strip() in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("line", [
    line.split("#")[0].split(">")[0].strip()
    for _, text in blocks("sh") for line in text.splitlines() if line.startswith("umcompress ")
])
def test_commands_parse(line: str) -> None:
    import shlex

    cli_parser.parse(shlex.split(line)[1:])


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for _, text in blocks("sh"):
        for target in re.findall(r"^make ([\w-]+)", text, re.MULTILINE):
            assert target in targets


@pytest.mark.parametrize(("where", "text"), [b for b in blocks("python") if b[0].startswith("README")])
def test_python_runs(where: str, text: str) -> None:
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_pictures_are_there() -> None:
    for page in PAGES:
        for target in re.findall(r"!\[.*?\]\((.*?)\)", page.read_text()):
            assert (page.parent / target).is_file(), f"{page.name} shows {target}"
