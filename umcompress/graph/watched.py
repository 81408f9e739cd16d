"""Which modules a calibration looks at: a runner leaves out what none of them needs.

One sweep at a time: all threads of a process see the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

_watched: list[frozenset[str]] = []


@contextmanager
def watching(paths: Collection[str]) -> Iterator[None]:
    """Inside, only modules at these paths and below are looked at."""
    _watched.append(frozenset(paths))
    try:
        yield
    finally:
        _watched.pop()


def is_watched(path: str) -> bool:
    """Whether anything at a path or below it is looked at; outside of `watching` everything is."""
    return not _watched or any(f"{one}.".startswith(f"{path}.") for one in _watched[-1])
