"""The load of experts in split feed-forwards: part of a step's report.  No torch."""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveInt

from umcompress.documents.base import Component, Document, Task

Shares = tuple[float, ...]


class ExpertLoad(Document):
    """One split feed-forward.  Every share is that of the tokens that the expert works for, in expert order.

    All shares of a task add up to `active`: an expert at 1 is always on, one at 0 is never used.  `by_time` has a row
    for each bin of denoising time, `tokens` how many were seen of each task.
    """

    site: str
    index: NonNegativeInt
    component: Component
    active: PositiveInt
    tokens: dict[Task, NonNegativeInt] = {}
    by_task: dict[Task, Shares] = {}
    by_time: tuple[Shares, ...] = ()


class Experts(Document):
    """All split feed-forwards of a model.  `times`: the bins, each from its first time to its last (1 is noise)."""

    times: tuple[tuple[float, float], ...] = ()
    sites: tuple[ExpertLoad, ...]
