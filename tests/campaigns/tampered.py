"""Tampered resumes: an unfinished run whose files were changed goes on to the same result, or says what is wrong.

`python tests/campaigns/tampered.py --count 200` takes so many copies of a run without its report and model, and damages
files of its steps; and of the model and the data that it was made of, where going on must be refused.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

from damage import copied, damaged
from in_child import run
from small_runs import campaign, command, last, references, result

WAY = "in memory"


def tampered(home: Path, count: int, seed: int = 0) -> tuple[str, list[str]]:
    """So many resumes; a line of figures, and a line for each that went on to something else."""
    expected = references(home, [WAY])[WAY]
    begun, out, faults, refused = home / f"reference {WAY}", home / "out", list[str](), 0
    for number in range(count):
        draw = random.Random(f"{seed} {number}")
        copied(begun, out)
        shutil.rmtree(out / "model")
        (out / "report.json").unlink()
        before = home / "before"
        source = draw.choice((None, None, None, "model", "texts.jsonl", "text.txt"))
        what = damaged(out, draw) if source is None else _changed_in_place(home, source, draw, before)
        ended = run(command(home, WAY, out))
        refused += ended.code != 0
        if ended.escaped or ended.code < 0:
            faults.append(f"case {number} ({what}): {ended.code}: {last(ended)}")
        elif ended.code == 0 and (source is not None or result(out) != expected):
            faults.append(f"case {number} ({what}): went on without a word")
        if source is not None:
            _put_back(home, source, before)
    return f"{count} tampered resumes, {refused} refused in words", faults


def _changed_in_place(home: Path, source: str, draw: random.Random, before: Path) -> str:
    """Turn one bit of a file that the run was made of; size and time stay."""
    shutil.rmtree(before, ignore_errors=True)
    before.mkdir()
    files = sorted((home / source).rglob("*.safetensors")) if source == "model" else [home / source]
    file = draw.choice(files)
    shutil.copy2(file, before / file.name)
    found, content = file.stat(), bytearray(file.read_bytes())
    place = draw.randrange(len(content) // 2, len(content))
    content[place] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    return f"bit of {file.name} at {place}"


def _put_back(home: Path, source: str, before: Path) -> None:
    for file in before.iterdir():
        shutil.copy2(file, home / source / file.name if source == "model" else home / source)


if __name__ == "__main__":
    campaign(__doc__, tampered, 200)
