"""WISE's rules: reading a judge's text, and the score of many grades.  Standard library only.

Niu et al., "WISE: A World Knowledge-Informed Semantic Evaluation for Text-to-Image Generation" (2025); the sum
over categories as BAGEL's code has it, and weighted by size as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

GRADES = ("consistency", "realism", "aesthetic_quality")
CATEGORIES = ("Cultural", "Time", "Space", "Biology", "Physics", "Chemistry")
UNREAD = 9.9  # stands for a grade that the judge did not give
_TIME = ("Longitudinal time", "Horizontal time")
_GRADE = re.compile(r"\*{0,2}(consistency|realism|aesthetic quality)\*{0,2}\s*[:：]?\s*(\d)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Graded:
    """One picture's grades, 0 to 2 each."""

    prompt_id: int
    subcategory: str
    consistency: float
    realism: float
    aesthetic_quality: float

    @property
    def wiscore(self) -> float:
        """0 to 2."""
        return 0.7 * self.consistency + 0.2 * self.realism + 0.1 * self.aesthetic_quality


def read_judge(text: str) -> dict[str, float]:
    """The grades in a judge's answer; what is missing is UNREAD, and of several the last counts."""
    grades = dict.fromkeys(GRADES, UNREAD)
    for name, digit in _GRADE.findall(text):
        grades[name.lower().replace(" ", "_")] = float(digit)
    return grades


def category(prompt_id: int, subcategory: str) -> str:
    """The category of a prompt: by its number, and by its subcategory where time and space share numbers."""
    if not 1 <= prompt_id <= 1000:
        raise ValueError(f"WISE has no prompt {prompt_id}")
    if prompt_id <= 400:
        return "Cultural"
    if prompt_id <= 700:
        return "Time" if subcategory in _TIME else "Space"
    return CATEGORIES[3 + (prompt_id - 701) // 100]


def by_category(rows: Iterable[Graded]) -> dict[str, tuple[float, int]]:
    """Category -> (sum of the scores, each 0 to 1; how many).  ValueError where a grade could not be read."""
    found: dict[str, tuple[float, int]] = {}
    for row in rows:
        if UNREAD in (row.consistency, row.realism, row.aesthetic_quality):
            raise ValueError(f"prompt {row.prompt_id} has a grade that could not be read")
        name = category(row.prompt_id, row.subcategory)
        total, count = found.get(name, (0.0, 0))
        found[name] = (total + row.wiscore, count + 1)
    return {name: (found[name][0] / 2, found[name][1]) for name in CATEGORIES if name in found}


def overall(parts: dict[str, tuple[float, int]]) -> float:
    """The plain mean of the six categories.  ValueError unless all are there."""
    if missing := [name for name in CATEGORIES if name not in parts]:
        raise ValueError(f"no grades for {', '.join(missing)}")
    return sum(total / count for total, count in parts.values()) / len(CATEGORIES)


def overall_by_size(parts: dict[str, tuple[float, int]]) -> float:
    """The mean over all prompts: categories weighted by their size."""
    return sum(total for total, _ in parts.values()) / sum(count for _, count in parts.values())
