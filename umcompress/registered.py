"""The registered passes and evaluations as classes, for the commands that describe them."""

from __future__ import annotations

from pathlib import Path

from umcompress import extend
from umcompress.errors import UsageError


def one_pass(name: str) -> type[extend.Pass]:
    """A pass by name, or as `file.py:Class` from the current folder. Raises UsageError."""
    try:
        return extend.find_pass(name, Path())
    except ValueError as error:
        message, _, hint = str(error).partition("; ")
        raise UsageError(message, do=hint) from error


def all_passes() -> dict[str, type[extend.Pass]]:
    return {name: one_pass(name) for name in extend.passes()}


def all_evaluations() -> dict[str, type[extend.Evaluation]]:
    found = {}
    for name in extend.evaluations():
        try:
            found[name] = extend.find_evaluation(name)
        except ValueError as error:
            raise UsageError(str(error)) from error
    return found
