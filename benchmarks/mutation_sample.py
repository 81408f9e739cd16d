"""Which share of random mutants of the code do the tests of their room let pass?

    python benchmarks/mutation_sample.py --count 50 --seed 0 --seconds 90

A mutant changes one place: a comparison, a constant by one, `and` to `or`, a `not`, a statement left out, a value that
is returned. It is made in a copy of the source, and `tests/ROOM` runs against that copy until a test fails. A mutant
survives when all tests pass; one whose tests are not done in time is counted apart: nothing is known of it.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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


def outcome(mutant: Mutant, package: Path, seconds: float) -> str:
    """`killed`, `survived` or `not done`."""
    inside = mutant.file.relative_to(ROOT)
    target = package / (inside if inside.parts[0] == "umcompress" else Path("umcompress") / inside)
    original = target.read_text(encoding="utf-8")
    target.write_text(mutated(original, mutant.number), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/{mutant.room}"]
    # Not the source in the current folder, which `-m` would put first.
    settings = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(package), "PYTHONDONTWRITEBYTECODE": "1"}
    environment = {**os.environ, **settings, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return "not done"
    finally:
        target.write_text(original, encoding="utf-8")
    return "survived" if done.returncode == 0 else "killed"


def main() -> None:
    """Draw mutants, run their tests, print a line for each and the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600, help="for the tests of one mutant")
    parser.add_argument("--rooms", nargs="*", default=ROOMS)
    asked = parser.parse_args()
    every = mutants(tuple(asked.rooms))
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        installed(Path(folder))
        for mutant in random.Random(asked.seed).sample(every, min(asked.count, len(every))):
            found = outcome(mutant, Path(folder), asked.seconds)
            counts[found] += 1
            print(f"{found}: {mutant.file.relative_to(ROOT)}:{mutant.line} {mutant.what}", flush=True)
    decided = counts["killed"] + counts["survived"]
    share = f"{counts['survived'] / decided:.0%}" if decided else "unknown"
    print(f"{len(every)} places; {counts['killed']} killed, {counts['survived']} survived ({share} of those decided), "
          f"{counts['not done']} not done in time")


if __name__ == "__main__":
    main()
