"""WISE's rules: reading a judge's text, and the score of a picture.  Standard library only.

Niu et al., "WISE: A World Knowledge-Informed Semantic Evaluation for Text-to-Image Generation" (2025).
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
        """The weighted mean of the three grades, 0 to 2."""
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


def scores_by_category(rows: Iterable[Graded]) -> dict[str, list[float]]:
    """Category -> the score of each of its pictures, 0 to 1; categories without a picture are left out."""
    found: dict[str, list[float]] = {name: [] for name in CATEGORIES}
    for row in rows:
        found[category(row.prompt_id, row.subcategory)].append(row.wiscore / 2)
    return {name: scores for name, scores in found.items() if scores}
