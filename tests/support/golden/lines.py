"""Compares values of JSON files, a line a comparison, and notices what was left unchecked.  No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CLOSE = 1e-9
Place = tuple[str | int, ...]


class Lines:
    """One golden file.  Every expected value has a place; a place that nothing was compared with fails."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.failures = 0
        self.count = 0
        self.expected: dict[Place, Any] = {}

    def line(self, good: bool, label: str, text: str) -> None:
        self.count += 1
        self.failures += not good
        print(f"{'ok  ' if good else 'FAIL'} {label:58s} {text}")

    def expect(self, value: Any, *place: str | int) -> None:
        """Everything in `value` is to be compared: a dictionary entry by entry, anything else as a whole."""
        for where, leaf in _leaves(value, place):
            self.expected[where] = leaf

    def same(self, ours: Any, *place: str | int) -> None:
        """Compare with what is expected at a place; dictionaries entry by entry, numbers to 1e-9."""
        for where, leaf in _leaves(ours, place):
            label = " ".join(map(str, where))
            if where not in self.expected:
                self.line(False, label, f"{_short(leaf)}, but nothing is expected there")
                continue
            theirs = self.expected.pop(where)
            good = _equal(leaf, theirs)
            self.line(good, label, "equal" if good else f"{_short(leaf)}, expected {_short(theirs)}")

    def nothing_else(self, rest: dict[str, Any], *place: str | int) -> None:
        """What no check knows fails."""
        for key in rest:
            self.line(False, " ".join(map(str, (*place, key))), "no check knows this")

    def finish(self) -> int:
        for place in self.expected:
            self.line(False, " ".join(map(str, place)), "left unchecked")
        if not self.count:
            self.line(False, self.name, "nothing in it to check")
        print(f"{self.count - self.failures} of {self.count} checks passed")
        return 1 if self.failures else 0


def read(path: Path) -> Any:
    """The content of a JSON or JSON-lines file."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return json.loads(text)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} cannot be read: {error}") from error


def _leaves(value: Any, place: Place) -> Iterator[tuple[Place, Any]]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _leaves(below, (*place, key))
    else:
        yield place, value


def _equal(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, bool) or isinstance(theirs, bool) or ours is None or theirs is None:
        return ours is theirs
    if isinstance(ours, int | float) and isinstance(theirs, int | float):
        return math.isclose(ours, theirs, rel_tol=CLOSE, abs_tol=CLOSE)
    if isinstance(ours, list | tuple) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(_equal, ours, theirs))
    return type(ours) is type(theirs) and bool(ours == theirs)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else text[:57] + "..."
