"""The registered passes and evaluations as classes, for the commands that describe them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from umcompress import extend
from umcompress.errors import UsageError

T = TypeVar("T")


def one_pass(name: str) -> type[extend.Pass]:
    """A pass by name, or as `file.py:Class` from the current folder. Raises UsageError."""
    return extend.find_pass(name, Path())


def all_passes() -> dict[str, type[extend.Pass]]:
    """Every pass that can be used; one that somebody else broke says so when it is named."""
    return _usable(extend.passes(), extend.find_pass)


def all_evaluations() -> dict[str, type[extend.Evaluation]]:
    """Every evaluation that can be used."""
    return _usable(extend.evaluations(), extend.find_evaluation)


def _usable(names: Iterable[str], find: Callable[[str], type[T]]) -> dict[str, type[T]]:
    found = {}
    for name in names:
        try:
            found[name] = find(name)
        except UsageError:
            continue
    return found
