"""The installed passes and evaluations, found by entry point or as `path/to/file.py:Class`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from umcompress.errors import UsageError
from umcompress.extend.pass_base import Pass
from umcompress.plugins import entries, load_class

if TYPE_CHECKING:
    from umcompress.extend.evaluation_base import Evaluation

PASSES = "umcompress.passes"
EVALUATIONS = "umcompress.evaluations"


def passes() -> list[str]:
    """The names of the installed passes; nothing of them is imported."""
    return sorted(entries(PASSES))


def evaluations() -> list[str]:
    """The names of the installed evaluations; nothing of them is imported."""
    return sorted(entries(EVALUATIONS))


def find_pass(name: str, base: Path | None = None) -> type[Pass]:
    """A pass by registered name or as `path/to/file.py:Class`, the path relative to `base`.  UsageError."""
    found: type[Pass] = load_class(PASSES, name, base, Pass, "pass")
    return found


def find_evaluation(name: str, base: Path | None = None) -> type[Evaluation]:
    """An evaluation by registered name or as `path/to/file.py:Class`.  UsageError."""
    # Here: who looks at passes need not wait for the documents of scores.
    from umcompress.extend.evaluation_base import Evaluation

    found: type[Evaluation] = load_class(EVALUATIONS, name, base, Evaluation, "evaluation")
    return found


T = TypeVar("T")


def one_pass(name: str) -> type[Pass]:
    """A pass by name, or as `file.py:Class` from the current folder. Raises UsageError."""
    return find_pass(name, Path())


def one_evaluation(name: str) -> type[Evaluation]:
    """An evaluation by name, or as `file.py:Class` from the current folder. Raises UsageError."""
    return find_evaluation(name, Path())


Told = Callable[[UsageError], None]
"""What is done with the reason why an installed class cannot be used."""


def all_passes(left_out: Told) -> dict[str, type[Pass]]:
    """Every pass that can be used.  One that somebody else broke hurts no other: `left_out` is told why."""
    return _usable(passes(), find_pass, left_out)


def all_evaluations(left_out: Told) -> dict[str, type[Evaluation]]:
    """Every evaluation that can be used, as with passes."""
    return _usable(evaluations(), find_evaluation, left_out)


def _usable(names: Iterable[str], find: Callable[[str], type[T]], left_out: Told) -> dict[str, type[T]]:
    found = {}
    for name in names:
        try:
            found[name] = find(name)
        except UsageError as error:
            left_out(error)
    return found
