"""What a run and each of its steps depend on, and how to say what has changed since.

A step is named by a digest of what it depends on and of the step that it starts from. So a changed step leaves those
before it as they are, and another run can tell which steps it has in common with this one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from umcompress.documents.base import Document

CONTENT = "sha256:"


class StepDependencies(Document):
    """One step, or the baseline: what its result depends on, beyond the step that it starts from.

    parts: the value of each option, version and setting, or the digest of a file's content (`sha256:...`).
    start: the number of the step that it starts from; None for the baseline, which has number 0.
    """

    name: str
    start: int | None = None
    parts: dict[str, str]


class Dependencies(Document):
    """Those of the baseline and of all steps, in order."""

    steps: tuple[StepDependencies, ...]

    def key(self, index: int) -> str:
        """Names the result of a step by all that it depends on."""
        step = self.steps[index]
        start = None if step.start is None else self.key(step.start)
        return _digest([step.name, step.parts, start])

    def keys(self) -> list[str]:
        return [self.key(index) for index in range(len(self.steps))]

    def fingerprint(self) -> str:
        """Names the run."""
        return _digest(self.keys())


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def changes(before: Dependencies, now: Dependencies) -> list[str]:
    """A line for each thing that differs, as a user reads it."""
    lines: list[str] = []
    for old, new in zip(before.steps, now.steps, strict=False):
        where = "" if old.name == new.name == now.steps[0].name else f"step {new.name}: "
        if old.name != new.name:
            lines.append(f"where step {new.name} is now, there was {old.name}")
        elif old.start != new.start:
            lines.append(f"{where}it starts from another step")
        else:
            lines += [where + line for line in _changed(old, new)]
    lines += [f"step {step.name} is new" for step in now.steps[len(before.steps) :]]
    return lines + [f"step {step.name} is no longer there" for step in before.steps[len(now.steps) :]]


def _changed(old: StepDependencies, new: StepDependencies) -> list[str]:
    lines = []
    for part in sorted(old.parts.keys() | new.parts.keys()):
        was, is_now = old.parts.get(part), new.parts.get(part)
        if was == is_now:
            continue
        if CONTENT in (str(was)[: len(CONTENT)], str(is_now)[: len(CONTENT)]):
            lines.append(f"{part} " + ("is new" if was is None else "is gone" if is_now is None else "has changed"))
        else:
            lines.append(f"{part}: {was or 'not there'} before, {is_now or 'not there'} now")
    return lines


def shortened(lines: Sequence[str], most: int = 8) -> str:
    """The lines as one text; of many only the first."""
    more = f"; and {len(lines) - most} more" if len(lines) > most else ""
    return "; ".join(lines[:most]) + more
