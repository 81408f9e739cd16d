"""MMBench: multiple choice, each question asked in several orders of its options."""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from umcompress.evals._benchmark import Needed
from umcompress.evals.answers._questions import AnsweredQuestion, Question, QuestionBenchmark, StoredPicture
from umcompress.evals.answers.mmbench_rules import LETTERS, ROTATION, Marked, count, in_every_order, parse
from umcompress.extend import Made, Score, UsageError, proportion, score_of_grades, with_numbers

PROMPT = "Answer with the option's letter from the given choices directly."
PROMPT_CN = "请直接回答选项字母。"
MADE = {
    "circular": Made(), "vanilla": Made(top={"unrotated right": 1}, bottom={"unrotated": 1}, pooled=True),
    "all_rows": Made(top={"rows right": 1}, bottom={"rows": 1}, pooled=True),
}  # fmt: skip
# Rows of the published files with answers.
ROWS = {"mmbench_dev_20230712": 4377, "mmbench_dev_en_20231003": 4329, "mmbench_dev_cn_20231003": 4329}


class MmBench(QuestionBenchmark):
    """The score is the circular one: a question counts where every order of its options is answered rightly.

    `numbers` has the vanilla accuracy (unrotated rows), the circular one, and that over all rows, which is what
    the reference code prints.
    """

    name: ClassVar[str] = "mmbench"
    new_tokens: ClassVar[int] = 100
    needed: ClassVar[Needed] = Needed(
        files=("mmbench_dev_20230712.tsv",),
        origin="https://opencompass.openxlab.space/utils/MMBench/ (github.com/open-compass/MMBench)",
        size="about 190 MB", items=4377,
    )  # fmt: skip

    def check(self) -> None:
        self._file()

    def _file(self) -> Path:
        self.require(self.folder)
        if self.folder.is_file():
            return self.folder
        found = sorted(self.folder.glob("*.tsv"))
        if not found:
            raise self.missing([self.folder / self.needed.files[0]])
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            asked = f"{self.name}: the data in {self.folder}"
            raise UsageError(asked, f"several tables: {names}", "name one: data: FILE")
        return found[0]

    def whole(self, questions: Sequence[Question]) -> int:
        return max(ROWS.get(self._file().stem.lower(), self.needed.items), len(questions))

    def questions(self) -> list[Question]:
        path = self._file()
        rows = _read(path)
        images = {row["index"]: row["image"] for row in rows}
        found = [_asked(row, images, "_cn" in path.stem.lower(), path) for row in rows]
        # The orders of a question after each other: its picture is decoded once.
        order: dict[str, int] = {}
        for item in found:
            order.setdefault(item.group, len(order))
        return sorted(found, key=lambda item: order[item.group])

    def right(self, item: AnsweredQuestion) -> bool:
        return bool(parse(item.answer, item.asked.more) == item.asked.truth)

    def expected(self, item: AnsweredQuestion) -> str:
        truth = item.asked.truth
        return f"{truth}. {item.asked.more.get(truth, '')}"

    def scored(self, answers: Sequence[AnsweredQuestion]) -> Score | None:
        if any(not item.asked.truth for item in answers):
            return None
        by_kind: dict[str, list[Marked]] = {}
        for item in answers:
            by_kind.setdefault(item.asked.kind, []).append(Marked(int(item.asked.id), self.right(item)))
        kinds = {kind: list(in_every_order(rows).values()) for kind, rows in by_kind.items()}
        whole = count([row for rows in by_kind.values() for row in rows])
        named = {"circular": whole.circular, "vanilla": whole.vanilla, "all_rows": whole.all_rows}
        numbers = {name: proportion(*counts) for name, counts in named.items() if counts[1]}
        return with_numbers(score_of_grades(kinds, ""), numbers, MADE, _columns(by_kind))


def _columns(by_kind: dict[str, list[Marked]]) -> dict[str, list[int]]:
    """Of each question, in the order of the grades, its rows and those that are right: of all, and unrotated."""
    groups: list[list[Marked]] = []
    for rows in by_kind.values():
        of_question: dict[int, list[Marked]] = {question: [] for question in in_every_order(rows)}
        for row in rows:
            of_question[row.index % ROTATION].append(row)
        groups += of_question.values()
    first = [[row for row in rows if row.index < ROTATION] for rows in groups]
    return {
        "rows": [len(rows) for rows in groups], "rows right": [_right(rows) for rows in groups],
        "unrotated": [len(rows) for rows in first], "unrotated right": [_right(rows) for rows in first],
    }  # fmt: skip


def _right(rows: Sequence[Marked]) -> int:
    return sum(row.right for row in rows)


def _read(path: Path) -> list[dict[str, str]]:
    """The rows of a table; an option may be the word None or NA, so an empty cell is all that means nothing."""
    csv.field_size_limit(sys.maxsize)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, delimiter="\t")
            rows = [{key: value or "" for key, value in row.items() if key} for row in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"mmbench: {path}", f"not readable as a table: {error}", "replace it") from error
    wanted = {"index", "question", "A", "image"}
    if not rows or not wanted <= rows[0].keys():
        has = ", ".join(rows[0]) if rows else "no rows"
        raise UsageError(f"mmbench: {path}", f"columns {', '.join(sorted(wanted))} wanted, found {has}", "replace it")
    return rows


def _asked(row: dict[str, str], images: dict[str, str], chinese: bool, path: Path) -> Question:
    options = {letter: row[letter] for letter in LETTERS if row.get(letter)}
    lines = [row["hint"]] if row.get("hint") else []
    lines += [row["question"], *(f"{letter}. {option}" for letter, option in options.items())]
    index = int(row["index"]) if row["index"].isdecimal() else -1
    if index < 0:
        raise UsageError(f"mmbench: {path}", f"index {row['index']!r} is not a number", "replace the table")
    # Some tables hold a repeated picture once, and elsewhere the index of the row that has it.
    holder = row["image"] if len(row["image"]) <= 64 and row["image"] in images else row["index"]
    group = str(index % ROTATION)
    name = f"{path.name}: {hashlib.sha256(images[holder].encode()).hexdigest()}"
    return Question(
        id=row["index"], prompt="\n".join([*lines, PROMPT_CN if chinese else PROMPT]),
        pictures=(StoredPicture(name, lambda: _bytes(images[holder], path, holder)),),
        kind=row.get("category") or "all",
        truth=row.get("answer", "").strip(), group=group, more=options, question=row["question"],
    )  # fmt: skip


def _bytes(text: str, path: Path, index: str) -> bytes:
    try:
        return base64.b64decode(text)
    except (binascii.Error, ValueError) as error:
        found = f"the picture of row {index} is not base64: {error}"
        raise UsageError(f"mmbench: {path}", found, "replace it") from error
