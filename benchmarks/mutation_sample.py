"""Which share of random mutants of the code do the tests let pass?

    pip install pytest-cov
    python benchmarks/mutation_sample.py --count 300 --seed 0 --seconds 90

A mutant changes one place: a comparison, a constant by one, `and` to `or`, a `not`, a statement left out, a value that
is returned. The tests of the rooms run once with coverage, which says which of them pass through each line; a mutant
made in a copy of the source then meets the tests of its line, the fastest first, until one fails. It survives when all
of them pass; one whose tests are not done in time is counted apart, and so is a line that no test passes through in
its own process. Each mutant is tried in a fork of a process that has imported the libraries but none of our modules.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from _results import record

ROOT = Path(__file__).parents[1]
ROOMS = ("graph", "rewrite", "passes", "recipe", "run")
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change of one file: place `number` among all places of the file."""

    file: Path
    number: int
    line: int
    what: str

    @property
    def room(self) -> str:
        parts = self.file.relative_to(ROOT).parts
        return parts[1] if parts[0] == "umcompress" else parts[0]


def places(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """The nodes that can be changed, always in the same order, each with what the change is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
            yield node, f"{type(node.ops[0]).__name__} to {COMPARISONS[type(node.ops[0])].__name__}"
        elif isinstance(node, ast.Constant) and type(node.value) is int:
            yield node, f"{node.value} to {node.value + 1}"
        elif isinstance(node, ast.BoolOp):
            yield node, "and to or" if isinstance(node.op, ast.And) else "or to and"
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield node, "not left out"
        elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
            yield node, "return None"
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield node, "call left out"
        elif isinstance(node, ast.AugAssign):
            yield node, "assignment left out"


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


class _Change(ast.NodeTransformer):
    def __init__(self, chosen: ast.AST) -> None:
        self.chosen = chosen

    def visit(self, node: ast.AST) -> ast.AST:
        if node is not self.chosen:
            return self.generic_visit(node)
        if isinstance(node, ast.Compare):
            node.ops[0] = COMPARISONS[type(node.ops[0])]()
        elif isinstance(node, ast.Constant):
            assert isinstance(node.value, int)
            node.value += 1
        elif isinstance(node, ast.BoolOp):
            node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        elif isinstance(node, ast.UnaryOp):
            return node.operand
        elif isinstance(node, ast.Return):
            node.value = ast.Constant(None)
        else:
            return ast.copy_location(ast.Pass(), node)
        return node


def mutated(source: str, number: int) -> str:
    """The text with place `number` changed; comments go, which no test reads."""
    tree = ast.parse(source)
    chosen = [node for node, _ in places(tree)][number]
    return ast.unparse(ast.fix_missing_locations(_Change(chosen).visit(tree)))


def mutants(rooms: tuple[str, ...]) -> list[Mutant]:
    """Every mutant of these rooms."""
    found = []
    for room in rooms:
        folder = ROOT / room if room == "passes" else ROOT / "umcompress" / room
        for file in sorted(folder.rglob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            for number, (node, what) in enumerate(places(tree)):
                found.append(Mutant(file, number, getattr(node, "lineno", 0), what))
    return found


def installed(folder: Path) -> None:
    """The package as it is laid out once installed."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "umcompress", folder / "umcompress", ignore=ignore)
    for name in ("passes", "evals", "recipes"):
        shutil.copytree(ROOT / name, folder / "umcompress" / name, ignore=ignore)


# -- which tests pass through a line -----------------------------------------------------------------------------------

Line = tuple[str, int]


def tests_by_line(rooms: tuple[str, ...], package: Path, kept: Path) -> dict[Line, list[str]]:
    """Tests of these rooms that run each line of the package, the fastest first; from `kept` if it is there."""
    if not kept.is_file():
        kept.write_text(json.dumps(_covered(rooms, package)))
    found: dict[Line, list[str]] = {}
    for file, lines in json.loads(kept.read_text()).items():
        found |= {(file, int(line)): tests for line, tests in lines.items()}
    return found


def _covered(rooms: tuple[str, ...], package: Path) -> dict[str, dict[int, list[str]]]:
    from coverage import CoverageData

    data, times = package / "coverage", package / "times.json"
    where = [f"tests/{room}" for room in rooms]
    plugin = package / "note_times.py"
    plugin.write_text(NOTE_TIMES)
    settings = package / "coveragerc"
    settings.write_text(f"[run]\nsource = {package / 'umcompress'}\ndata_file = {data}\n")
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "note_times", "--cov",
        f"--cov-config={settings}", "--cov-context=test", "--cov-report=", *where,
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, env=_environment(package) | {"TIMES": str(times)}, check=True)
    seconds: dict[str, float] = json.loads(times.read_text())
    measured = CoverageData(str(data))
    measured.read()
    found: dict[str, dict[int, list[str]]] = defaultdict(dict)
    for file in measured.measured_files():
        for line, contexts in measured.contexts_by_lineno(file).items():
            tests = {context.rpartition("|")[0] for context in contexts if context} & set(seconds)
            found[str(Path(file).relative_to(package))][line] = sorted(tests, key=seconds.__getitem__)
    return found


NOTE_TIMES = """
import collections, json, os
took = collections.Counter()
def pytest_runtest_logreport(report):
    took[report.nodeid] += report.duration
def pytest_sessionfinish():
    with open(os.environ["TIMES"], "w") as file:
        json.dump(took, file)
"""


def _environment(package: Path) -> dict[str, str]:
    # Not the source in the current folder, which `-m` would put first.
    own = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(package), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own}


# -- one mutant --------------------------------------------------------------------------------------------------------


def outcome(mutant: Mutant, package: Path, tests: dict[Line, list[str]], seconds: float) -> str:
    """`killed`, `survived`, `not run` (no test passes through the line) or `not done`."""
    inside = mutant.file.relative_to(ROOT)
    inside = inside if inside.parts[0] == "umcompress" else Path("umcompress") / inside
    chosen = tests.get((str(inside), mutant.line), [])
    if not chosen:
        return "not run"
    target = package / inside
    original = target.read_text(encoding="utf-8")
    target.write_text(mutated(original, mutant.number), encoding="utf-8")
    try:
        child = multiprocessing.get_context("fork").Process(target=_run, args=(package, chosen))
        child.start()
        child.join(seconds)
        if child.is_alive():
            child.kill()
            child.join()
            return "not done"
    finally:
        target.write_text(original, encoding="utf-8")
    return "survived" if child.exitcode == 0 else "killed"


def _run(package: Path, tests: list[str]) -> None:
    import pytest

    os.environ |= _environment(package)
    sys.path.insert(0, str(package))
    os.chdir(ROOT)
    with Path(os.devnull).open("w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-cov", *tests])
    os._exit(int(code))


def outcomes(
    sample: Sequence[Mutant], package: Path, tests: dict[Line, list[str]], seconds: float, kept: Path | None
) -> dict[str, str]:
    """Mutant -> outcome, printed as they come.  What `kept` has is taken from there, but for what was not done."""
    found: dict[str, str] = json.loads(kept.read_text()) if kept is not None and kept.is_file() else {}
    for mutant in sample:
        name = f"{mutant.file.relative_to(ROOT)}:{mutant.line} {mutant.what} ({mutant.number})"
        if found.get(name, "not done") == "not done":
            found[name] = outcome(mutant, package, tests, seconds)
            print(f"{found[name]}: {name}", flush=True)
            if kept is not None:
                kept.write_text(json.dumps(found, indent=1))
    return found


def import_libraries() -> None:
    """What every test needs, once; none of our modules, which a mutant changes."""
    for name in ("torch.fx", "transformers.models.qwen2", "pydantic", "hypothesis", "scipy.stats"):
        importlib.import_module(name)
    ours = [name for name in sys.modules if name.partition(".")[0] == "umcompress"]
    assert not ours, ours


def main() -> None:
    """Draw mutants, run their tests, print a line for each and the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600, help="for the tests of one mutant")
    parser.add_argument("--rooms", nargs="*", default=ROOMS)
    parser.add_argument("--covered", type=Path, default=Path("mutation_coverage.json"), help="tests by line, kept")
    parser.add_argument("--outcomes", type=Path, help="kept as they come; a second call tries only what was not done")
    parser.add_argument("--record", action="store_true", help="append to results.md")
    asked = parser.parse_args()
    rooms = tuple(asked.rooms)
    every = mutants(rooms)
    import_libraries()
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder)
        installed(package)
        tests = tests_by_line(rooms, package, asked.covered)
        sample = random.Random(asked.seed).sample(every, min(asked.count, len(every)))
        found = outcomes(sample, package, tests, asked.seconds, asked.outcomes)
    counts = Counter(found.values())
    decided = counts["killed"] + counts["survived"]
    share = f"{counts['survived'] / decided:.0%}" if decided else "unknown"
    print(f"{len(every)} places; {counts['killed']} killed, {counts['survived']} survived ({share} of those decided), "
          f"{counts['not done']} not done in time, {counts['not run']} on lines that no test runs in its own process")
    if asked.record:
        row: dict[str, float] = {"places": len(every)}
        row |= {name: counts[name] for name in ("killed", "survived", "not done", "not run")}
        record("mutation_sample", {"seed": asked.seed, "seconds": asked.seconds}, {" ".join(rooms): row})


if __name__ == "__main__":
    main()
