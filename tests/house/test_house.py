"""The house rules, checked by tools: who imports whom, lint, types, the size of files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from places import ROOT

SOURCES = ("umcompress", "passes", "evals", "recipes")
# What is typed as strictly as the sources, beside them.
TYPED = ("benchmarks", "tests")
# Modules of these folders import each other by their bare names.
BASES = ("benchmarks", "tests", "tests/campaigns", "tests/support")


def run(*command: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> None:
    done = subprocess.run([sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"


def python_files() -> list[Path]:
    return sorted(file for folder in SOURCES for file in (ROOT / folder).rglob("*.py"))


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The package as it is laid out once installed: import linter and mypy read folders, not the mapping."""
    python_only = shutil.ignore_patterns("__pycache__", "*.safetensors", "*.json", "*.png")
    shutil.copytree(ROOT / "umcompress", tmp_path / "umcompress", ignore=python_only)
    for folder in SOURCES[1:]:
        shutil.copytree(ROOT / folder, tmp_path / "umcompress" / folder, ignore=python_only)
    return tmp_path


def test_imports_keep_to_their_layers(installed: Path) -> None:
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    run("-c", command, "--config", str(ROOT / "pyproject.toml"), "--no-cache", cwd=installed)


def test_every_folder_that_is_installed_is_listed() -> None:
    """Folders of data, too: setuptools prints a banner at each install for one that lies in a package unlisted."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    done = subprocess.run(["git", "ls-files", *SOURCES], cwd=ROOT, capture_output=True, text=True, check=False)
    files = done.stdout.splitlines() if done.returncode == 0 else [
        str(file.relative_to(ROOT)) for top in SOURCES for file in (ROOT / top).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    ]
    folders = {".".join(Path(file).parent.parts) for file in files}
    assert sorted(listed) == sorted(name if name.startswith("umcompress") else f"umcompress.{name}" for name in folders)


def test_ruff() -> None:
    run("-m", "ruff", "check", *SOURCES, "tests", "benchmarks", "docs")


def test_types(installed: Path) -> None:
    cache = ROOT / ".mypy_cache" / "installed"
    config = ROOT / "pyproject.toml"
    files = [str(file) for folder in TYPED for file in sorted((ROOT / folder).rglob("*.py"))]
    options = ("--config-file", str(config), "--cache-dir", str(cache), "--explicit-package-bases")
    bases = {"MYPYPATH": os.pathsep.join(str(ROOT / folder) for folder in BASES)}
    run("-m", "mypy", *options, "umcompress", *files, cwd=installed, env=os.environ | bases)


def test_files_can_be_read_in_one_sitting() -> None:
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in python_files()}
    long = {str(file.relative_to(ROOT)): length for file, length in lengths.items() if length > 400}
    assert not long, f"split these: {long}"
    over = [file for file, length in lengths.items() if length > 300]
    assert len(over) <= len(lengths) // 20, f"files stay under 300 lines, with few exceptions: {over}"
