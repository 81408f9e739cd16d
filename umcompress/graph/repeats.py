"""Rows that a model sends through its blocks again and again, and which calibration counts once.

A sampler reads its context once and then calls the model for every step. Rows of the context that come along each time
would outweigh all others in the statistics, though they say nothing new.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_REPEATED: ContextVar[frozenset[str]] = ContextVar("repeated", default=frozenset())


@contextmanager
def repeated(*components: str) -> Iterator[None]:
    """Inside, the rows of these components have been through the model before: statistics leave them out."""
    token = _REPEATED.set(_REPEATED.get() | set(components))
    try:
        yield
    finally:
        _REPEATED.reset(token)


def counts(component: str | None) -> bool:
    """Whether the rows of a component that pass now are counted."""
    return component not in _REPEATED.get()
