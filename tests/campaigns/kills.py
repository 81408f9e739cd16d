"""Kills at every n-th thing that `apply` asks of the system in its folder: the same command then comes to the same.

`python tests/campaigns/kills.py --count 200` spreads so many kills evenly over runs in memory, out of core and in
training. Half-written weight files are among what they leave.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from in_child import at_event, killed, run
from small_runs import WAYS, campaign, command, finished, last, references


def kills(home: Path, count: int, seed: int = 0, ways: tuple[str, ...] = WAYS) -> tuple[str, list[str]]:
    """So many kills, `seed` places further on; a line of figures, and a line for each run that was lost."""
    expected, faults, done, events = references(home, ways), list[str](), 0, 0
    for number, way in enumerate(ways):
        log = home / "events.txt"
        counted = run(command(home, way, home / "counted"), at_event(home / "counted", 0, killed, log))
        assert counted.code == 0, counted.said
        shutil.rmtree(home / "counted")
        total = len(log.read_text().splitlines())
        events += total
        share = (count * (number + 1)) // len(ways) - (count * number) // len(ways)
        for place in sorted({1 + (seed + (total * k) // share) % total for k in range(share)}):
            out, what = home / "out", f"{way}, killed at {place} of {total}"
            arguments = command(home, way, out)
            ended = run(arguments, at_event(out, place, killed))
            if ended.code != -9:
                faults.append(f"{what}: it ended with {ended.code}: {last(ended)}")
            faults += finished(arguments, out, expected[way], what)
            shutil.rmtree(out, ignore_errors=True)
            done += 1
    return f"{done} kills, of {events} places", faults


if __name__ == "__main__":
    campaign(__doc__, kills, 200)
