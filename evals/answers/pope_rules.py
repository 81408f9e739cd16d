"""POPE's rules: reading yes and no, and the five numbers of a category.  Standard library only.

Li et al., "Evaluating Object Hallucination in Large Vision-Language Models" (2023), and its evaluation code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CATEGORIES = ("random", "popular", "adversarial")


@dataclass(frozen=True, slots=True)
class PopeScore:
    """precision, recall and f1 of "yes"; 0 where they have no meaning (the original divides by zero)."""

    true_yes: int
    false_yes: int
    true_no: int
    false_no: int

    @property
    def n(self) -> int:
        return self.true_yes + self.false_yes + self.true_no + self.false_no

    @property
    def right(self) -> int:
        return self.true_yes + self.true_no

    @property
    def accuracy(self) -> float:
        return self.right / self.n

    @property
    def precision(self) -> float:
        return _share(self.true_yes, self.true_yes + self.false_yes)

    @property
    def recall(self) -> float:
        return _share(self.true_yes, self.true_yes + self.false_no)

    @property
    def f1(self) -> float:
        return _share(2 * self.true_yes, 2 * self.true_yes + self.false_yes + self.false_no)

    @property
    def yes_ratio(self) -> float:
        return (self.true_yes + self.false_yes) / self.n


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def parse(response: str) -> str:
    """yes or no: the first sentence without commas says no where one of its words is No, no or not."""
    words = response.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def score(answers: Sequence[str], labels: Sequence[str]) -> PopeScore:
    """Parsed answers against labels; a label other than "no" means yes."""
    counts = {(said, is_no): 0 for said in ("yes", "no") for is_no in (True, False)}
    for answer, label in zip(answers, labels, strict=True):
        counts[answer, label == "no"] += 1
    return PopeScore(counts["yes", False], counts["yes", True], counts["no", True], counts["no", False])
