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

FILE = "answers.jsonl"
MOST = 24  # that a page shows of a step


@dataclass(frozen=True)
class LostAnswer:
    """One question with the right answer, what is said now, and the picture where the evaluation kept it."""

    question: str
    expected: str
    answer: str
    picture: str | None


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
            before, after = _rows(base / name / FILE), _rows(here / name / FILE)
            one = _compared(f"{step.name} ({name})", before, after)
            found += [one] if one is not None and one.count else []
    return found


def _plain(name: str) -> str:
    """A step's name without its number."""
    number, _, rest = name.partition("-")
    return rest if number.isdigit() and rest else name


def _rows(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    rows = [files.parse_json(line) for line in lines_of(text_of(file)) if line.strip()]
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("correct"), bool)]


def _compared(name: str, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> LostAnswers | None:
    """None where the two are not answers to the same questions."""
    asked = [[row.get("question") for row in rows] for rows in (before, after)]
    if not before or asked[0] != asked[1]:
        return None
    pairs = list(zip(before, after, strict=True))
    lost = [row for old, row in pairs if old["correct"] and not row["correct"]]
    back = sum(not old["correct"] and row["correct"] for old, row in pairs)
    return LostAnswers(name, len(lost), back, len(pairs), tuple(_answers(lost[:MOST])))


def _answers(rows: list[dict[str, Any]]) -> Iterator[LostAnswer]:
    for row in rows:
        yield LostAnswer(str(row.get("question")), str(row.get("expected")), str(row.get("answer")), _picture(row))


def _picture(row: dict[str, Any]) -> str | None:
    try:
        return inlined(base64.b64decode(row["picture"], validate=True))
    except (KeyError, TypeError, binascii.Error):
        return None
