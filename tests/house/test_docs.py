"""What the pages say of the repository is so: paths and links exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from places import DOCS, ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
# Folders that are here to be named; other words in code quotes are options, names of fields and the like.
TOP = ("umcompress", "passes", "evals", "recipes", "tests", "benchmarks", "docs")


def named(page: Path) -> list[str]:
    """The paths in code quotes that begin at a folder of the repository."""
    quoted = re.findall(r"`([\w./-]+)`", page.read_text(encoding="utf-8"))
    return [text for text in quoted if text.split("/")[0] in TOP and ("/" in text or text == "evals")]


def test_every_path_of_the_architecture_page_exists() -> None:
    paths = named(DOCS / "architecture.md")
    assert len(paths) > 40
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_every_room_has_its_line() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    table = text.split("## The rooms")[1].split("## The laws")[0]
    packages = {f.parent.name for f in (ROOT / "umcompress").glob("*/__init__.py")}
    assert not [room for room in packages if f"`umcompress/{room}`" not in table]


def test_twenty_rows_say_what_to_open() -> None:
    table = (DOCS / "architecture.md").read_text(encoding="utf-8").split("## To change X, open Y")[1]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 20
    assert all("`" in row.split("|")[2] for row in rows)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    here = [target.split("#")[0] for target in targets if not target.startswith(("http", "#"))]
    assert not [target for target in here if not (page.parent / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_paths_exist(page: Path) -> None:
    assert not [path for path in named(page) if not (ROOT / path).exists()]
