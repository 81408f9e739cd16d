"""Progress for people: one line a thing, on stderr, with the time since the start."""

from __future__ import annotations

import sys
import time

from umcompress import processes

_STARTED = time.monotonic()


def say(text: str) -> None:
    """`[m:ss] text`; results go to stdout and are not mixed with this.  Of several processes the first speaks."""
    if processes.rank() != 0:
        return
    minutes, seconds = divmod(int(time.monotonic() - _STARTED), 60)
    print(f"{minutes:3d}:{seconds:02d}  {text}", file=sys.stderr, flush=True)
