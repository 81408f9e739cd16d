"""Errors of libraries that have no class of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def bare_as_value_error() -> Iterator[None]:
    """The library of tokenizers raises `Exception` itself for a file that it cannot make sense of: as a ValueError."""
    try:
        yield
    except Exception as error:
        if type(error) is Exception:
            raise ValueError(str(error)) from error
        raise
