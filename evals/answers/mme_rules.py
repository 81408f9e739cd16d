"""MME's rules: how an answer is cleaned and read, and what a task's score is.  Standard library only.

Fu et al., "MME: A Comprehensive Evaluation Benchmark for Multimodal Large Language Models" (2023), and the
calculation that comes with it.  A task scores 100 accuracy + 100 accuracy+, the share of pictures with both
questions right; 14 tasks make 2800 points.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
TASKS = PERCEPTION + COGNITION
_CHINESE = re.compile(r"[\u4e00-\u9fa5]")


@dataclass(frozen=True, slots=True)
class Line:
    """One question: its picture's name, `Yes` or `No`, and the cleaned answer."""

    image: str
    truth: str
    answer: str


@dataclass(frozen=True, slots=True)
class TaskScore:
    """`other` answers, neither yes nor no, count as wrong; the four counts leave them out."""

    acc: float
    acc_plus: float
    other: int
    true_yes: int
    missed_yes: int
    true_no: int
    missed_no: int
    images: int
    parsed: tuple[str, ...]

    @property
    def score(self) -> float:
        return 100 * self.acc + 100 * self.acc_plus


def clean(response: str) -> str:
    """The raw answer as it is written into the results file; the order of the steps matters."""
    text = response.replace("\n", "").replace("不是", "No").replace("是", "Yes").replace("否", "No")
    return _CHINESE.sub("", text.lower().replace("true", "yes").replace("false", "no"))


def parse(answer: str) -> str:
    """yes, no or other, from the first four characters of a cleaned answer: "not sure" is a no."""
    text = answer.lower()
    if text in ("yes", "no"):
        return text
    start = text[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def score_task(lines: Sequence[Line]) -> TaskScore:
    """The score of one task's questions.  Questions pair by their picture's name; ValueError unless in twos."""
    by_image: dict[str, list[bool]] = {}
    parsed = tuple(parse(line.answer) for line in lines)
    counts = {("yes", "yes"): 0, ("yes", "no"): 0, ("no", "no"): 0, ("no", "yes"): 0}
    for line, found in zip(lines, parsed, strict=True):
        truth = line.truth.lower()
        by_image.setdefault(line.image, []).append(found == truth)
        if found != "other":
            counts[truth, found] += 1
    odd = [image for image, marks in by_image.items() if len(marks) != 2]
    if odd or not by_image:
        raise ValueError(f"pictures without two questions each: {', '.join(odd[:3]) or 'no questions at all'}")
    right = sum(sum(marks) for marks in by_image.values())
    return TaskScore(
        acc=right / len(lines), acc_plus=sum(all(marks) for marks in by_image.values()) / len(by_image),
        other=parsed.count("other"), true_yes=counts["yes", "yes"], missed_yes=counts["yes", "no"],
        true_no=counts["no", "no"], missed_no=counts["no", "yes"], images=len(by_image), parsed=parsed,
    )  # fmt: skip


def picture_grades(lines: Sequence[Line]) -> list[float]:
    """What each picture adds, 0 to 1: half for the share of its questions that are right, half if both are.

    A task's score is 200 times their mean.
    """
    marks: dict[str, list[bool]] = {}
    for line in lines:
        marks.setdefault(line.image, []).append(parse(line.answer) == line.truth.lower())
    return [(sum(of_it) / len(of_it) + all(of_it)) / 2 for of_it in marks.values()]


def totals(scores: Mapping[str, float]) -> dict[str, float]:
    """Task scores -> Perception, Cognition and their sum.  ValueError for tasks that MME does not have."""
    if strange := sorted(set(scores) - set(TASKS)):
        raise ValueError(f"MME has no task {', '.join(strange)}")
    perception = sum(scores[task] for task in PERCEPTION if task in scores)
    cognition = sum(scores[task] for task in COGNITION if task in scores)
    return {"Perception": perception, "Cognition": cognition, "MME": perception + cognition}
