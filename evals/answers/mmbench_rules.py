"""MMBench's rules: which option an answer means, and the three numbers that go by its name.

Liu et al., "MMBench: Is Your Multi-modal Model an All-around Player?" (2023).  Its files hold each question
several times with the options rotated; the copies of question i have the index i + k * 1 000 000.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ROTATION = 1_000_000
LETTERS = ("A", "B", "C", "D", "E")


@dataclass(frozen=True, slots=True)
class Marked:
    """One row of the table: its index, and whether the prediction is the answer."""

    index: int
    right: bool


@dataclass(frozen=True, slots=True)
class Counts:
    """(right, of) each: `all_rows` is what the reference code prints, `circular` what the official server does.

    vanilla: the rows as they were written, unrotated.  circular: questions right in every rotation.
    """

    vanilla: tuple[int, int]
    circular: tuple[int, int]
    all_rows: tuple[int, int]


def parse(response: str, options: Mapping[str, str]) -> str:
    """The option that an answer means, by the reference's rule; the answer itself where none is recognised.

    One character stands for itself whatever it is, and an empty answer is C.
    """
    text = response.strip()
    if len(text) == 1:
        return text
    if not text:
        return "C"
    if text[0] in options:
        return text[0]
    return next((letter for letter, option in options.items() if option in text), text)


def in_every_order(rows: Sequence[Marked]) -> dict[int, bool]:
    """Of each question whether it was answered rightly in every order of its options."""
    groups: dict[int, bool] = {}
    for row in rows:
        question = row.index % ROTATION
        groups[question] = groups.get(question, True) and row.right
    return groups


def count(rows: Sequence[Marked]) -> Counts:
    """The three counts of a table."""
    base = [row.right for row in rows if row.index < ROTATION]
    groups = in_every_order(rows)
    return Counts(
        vanilla=(sum(base), len(base)), circular=(sum(groups.values()), len(groups)),
        all_rows=(sum(row.right for row in rows), len(rows)),
    )  # fmt: skip
