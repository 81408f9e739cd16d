"""Budgets of a search: shares of the unpruned model's size, work or time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

from umcompress.documents.alone import Sizes
from umcompress.documents.base import TASKS, Task
from umcompress.errors import UsageError, did_you_mean

_EXAMPLE = "write it as --budget active.generation=0.5"
MEASURES = (
    "parameters", "bytes", *(f"{kind}.{task}" for kind in ("active", "work", "seconds") for task in TASKS),
)  # fmt: skip


def budgets_of(texts: Sequence[str]) -> dict[str, float]:
    """`MEASURE=SHARE` as given; UsageError."""
    found: dict[str, float] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        asked = f"--budget {text}"
        if not equals:
            raise UsageError(asked, "it is not MEASURE=SHARE", _EXAMPLE)
        if name not in MEASURES:
            raise UsageError(asked, f"no measure {name!r}", f"{did_you_mean(name, MEASURES)}".strip())
        try:
            share = float(value)
        except ValueError:
            share = math.nan
        if not 0 < share < 1:
            raise UsageError(asked, f"{value!r} is no share above 0 and below 1", _EXAMPLE)
        if name in found:
            raise UsageError(asked, f"{name} has a budget already", "give it once")
        found[name] = share
    if not found:
        raise UsageError("search", "no budget", _EXAMPLE)
    return found


def amount(sizes: Sizes, measure: str) -> float:
    """A measure of a model.  UsageError where the model has no such task."""
    kind, _, name = measure.partition(".")
    if not name:
        return float(sizes.parameters.total if kind == "parameters" else sizes.bytes.total)
    task = cast(Task, name)
    kinds: dict[str, Mapping[Task, float]] = {
        "active": sizes.parameters.active, "work": sizes.macs_per_token, "seconds": sizes.seconds,
    }  # fmt: skip
    by_task = kinds[kind]
    if task not in by_task:
        raise UsageError(f"--budget {measure}", f"the model has no {name} to measure", f"it has {', '.join(by_task)}")
    return float(by_task[task])
