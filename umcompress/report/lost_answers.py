"""Answers that were right before the first step and are wrong after a step: from the files that evaluations leave."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umcompress.documents import files
from umcompress.documents.lines import lines_of, text_of
from umcompress.documents.report import Report
from umcompress.report.pages import inlined

FILES = ("graded.jsonl", "answers.jsonl")  # the first of them that says which answers are right
MOST = 24  # that a page shows of a step


@dataclass(frozen=True)
class LostAnswer:
    """One question with the right answer, what is said now, and the pictures where the evaluation kept them."""

    question: str
    expected: str
    answer: str
    pictures: tuple[str, ...]


@dataclass(frozen=True)
class LostAnswers:
    """Of one evaluation after one step: the first of those lost; how many were lost and found again, of how many."""

    name: str
    count: int
    back: int
    of: int
    answers: tuple[LostAnswer, ...]


def lost_answers(report: Report, run: Path) -> list[LostAnswers]:
    """Those of every step of a run, evaluation by evaluation.  Files that are not there have nothing to say."""
    folders = {_plain(path.name): path for path in sorted((run / "steps").glob("[!.]*"))}
    base = folders.get("baseline")
    found = []
    for step in report.steps[1:]:
        # What a step left alone was not asked again: the answers are those of the step that was.
        here = folders.get(_plain(step.kept.get("understanding", step.name)))
        if base is None or here is None:
            continue
        for name in step.evaluations:
            before, after = _rows(base / name), _rows(here / name)
            one = _compared(f"{step.name} ({name})", before, after)
            found += [one] if one is not None and one.count else []
    return found


def _plain(name: str) -> str:
    """A step's name without its number."""
    number, _, rest = name.partition("-")
    return rest if number.isdigit() and rest else name


def _rows(folder: Path) -> list[dict[str, Any]]:
    for file in (folder / name for name in FILES):
        if not file.is_file():
            continue
        rows = [files.parse_json(line) for line in lines_of(text_of(file)) if line.strip()]
        if found := [row for row in rows if isinstance(row, dict) and isinstance(row.get("correct"), bool)]:
            return found
    return []


def _compared(name: str, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> LostAnswers | None:
    """None where the two are not answers to the same questions."""
    asked = [[(row.get("id"), row.get("question")) for row in rows] for rows in (before, after)]
    if not before or asked[0] != asked[1]:
        return None
    pairs = list(zip(before, after, strict=True))
    lost = [row for old, row in pairs if old["correct"] and not row["correct"]]
    back = sum(not old["correct"] and row["correct"] for old, row in pairs)
    return LostAnswers(name, len(lost), back, len(pairs), tuple(_answers(lost[:MOST])))


def _answers(rows: list[dict[str, Any]]) -> Iterator[LostAnswer]:
    for row in rows:
        question, expected, answer = (str(row.get(key)) for key in ("question", "expected", "answer"))
        yield LostAnswer(question, expected, answer, tuple(_pictures(row)))


def _pictures(row: dict[str, Any]) -> Iterator[str]:
    """`picture`, or each of `pictures`: PNGs in base64; what is none is left out."""
    several = row.get("pictures", [row["picture"]] if "picture" in row else [])
    for one in several if isinstance(several, list) else []:
        try:
            yield inlined(base64.b64decode(one, validate=True))
        except (TypeError, binascii.Error):
            continue
