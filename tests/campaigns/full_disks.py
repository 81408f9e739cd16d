"""Full disks: a write, or a file beyond a size, is refused; the run ends in words that name the file, and resumes.

`python tests/campaigns/full_disks.py --count 100`: half of them by a limit on the size of files, which the system
enforces, half by "no space left" at any one thing that is asked of it.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from in_child import at_event, disk_full, no_larger_files, run
from small_runs import WAYS, campaign, command, finished, last, references


def full_disks(home: Path, count: int, seed: int = 0, ways: tuple[str, ...] = WAYS) -> tuple[str, list[str]]:
    """So many; a line of figures, and a line for each run that escaped, named no file or was lost."""
    expected, faults, out, refused = references(home, ways), list[str](), home / "out", 0
    draw = random.Random(seed)
    for number in range(count):
        way = ways[number % len(ways)]
        arguments = command(home, way, out)
        if number % 2:
            size = int(10 ** draw.uniform(0, 5))
            what, before = f"{way}, files up to {size} bytes", no_larger_files(size)
        else:
            place = draw.randrange(1, 140)
            what, before = f"{way}, no space at {place}", at_event(out, place, disk_full)
        ended = run(arguments, before)
        refused += ended.code != 0
        if ended.escaped or (ended.code == 1 and str(home) not in ended.said and "umcompress: use /" not in ended.said):
            faults.append(f"{what}: {ended.code}: {last(ended)}")
        faults += finished(arguments, out, expected[way], what)
        shutil.rmtree(out, ignore_errors=True)
    return f"{count} full disks, {refused} runs ended by them", faults


if __name__ == "__main__":
    campaign(__doc__, full_disks, 100)
