"""Append what a benchmark found to results.md: a dated entry with versions, commit and arguments."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

RESULTS = Path(__file__).parent / "results.md"


def commit() -> str:
    """The checkout's commit; a star says that files had been changed, others than those of results."""
    here = Path(__file__).parent
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True)
    changed = ["git", "status", "--porcelain", "-uno", ".", ":/", f":(exclude){RESULTS.name}"]
    dirty = subprocess.run(changed, cwd=here, capture_output=True, text=True)
    return head.stdout.strip() + ("*" if dirty.stdout.strip() else "")


def as_installed() -> dict[str, str]:
    """The environment of commands that are timed: Python keeps its bytecode, as it does for users."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def record(
    benchmark: str, arguments: Mapping[str, object], rows: Mapping[str, Mapping[str, float]]
) -> None:
    """One table: a line a row, a column a figure.  Where things lie on this machine is nobody's business: no paths."""
    import torch

    columns = list(next(iter(rows.values())))
    told = {key: value for key, value in arguments.items() if key != "record" and not isinstance(value, Path)}
    given = ", ".join(f"{key} {value}" for key, value in told.items())
    lines = [
        f"\n## {benchmark}, {datetime.date.today().isoformat()}\n",
        f"commit {commit()}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()} CPU, {torch.get_num_threads()} threads; {given}\n",
        f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}",
    ]
    lines += [f"| {name} | {' | '.join(f'{row[key]:.3g}' for key in columns)} |" for name, row in rows.items()]
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
