"""Damaged model folders: every command on one ends well or in words, in seconds, in bounded memory.

`python tests/campaigns/damaged_folders.py --count 2000` damages so many: `inspect` and `plan` on each, `apply` on every
tenth, in memory and out of core.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from damage import copied, damaged
from in_child import less_memory, run
from small_runs import campaign, last

_MEMORY = 3 << 30


def damaged_folders(home: Path, count: int, seed: int = 0, runs_every: int = 10) -> tuple[str, list[str]]:
    """So many folders; a line of figures, and a line for each command that escaped."""
    import torch  # noqa: F401  (for the forks)

    faults, codes = list[str](), dict[int, int]()
    folder = home / "damaged"
    for number in range(count):
        draw = random.Random(f"{seed} {number}")
        copied(home / "model", folder)
        done = damaged(folder, draw)
        options = ["--set", f"model={folder}", "--set", "evaluate=[]"]
        commands = [["inspect", str(folder)], ["plan", str(home / "in_memory.yaml"), *options]]
        if number % runs_every == 0:
            more = ["--out-of-core"] if draw.random() < 0.5 else []
            commands = [["apply", str(home / "in_memory.yaml"), *options, "-o", str(home / "out"), *more]]
        for arguments in commands:
            ended = run(arguments, less_memory(_MEMORY), seconds=60)
            codes[ended.code] = codes.get(ended.code, 0) + 1
            if ended.escaped:
                faults.append(f"case {number} ({done}), {arguments[0]}: {ended.code}: {last(ended)}")
        shutil.rmtree(home / "out", ignore_errors=True)
    figures = ", ".join(f"{times} with {code}" for code, times in sorted(codes.items()))
    return f"{count} damaged folders; commands ended: {figures}", faults


if __name__ == "__main__":
    campaign(__doc__, damaged_folders, 2000)
