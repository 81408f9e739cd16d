"""MMMU: college-level questions of 30 subjects, multiple choice and open, with up to seven pictures."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from umcompress.evals._benchmark import Needed
from umcompress.evals.answers import mmbench_rules
from umcompress.evals.answers._questions import AnsweredQuestion, Question, QuestionBenchmark, StoredPicture
from umcompress.evals.answers.mmmu_rules import LETTERS, judge_open, parse_choice, parse_open
from umcompress.extend import Made, Score, UsageError, proportion, score_of_grades, with_numbers

CHOICE = "Answer with the option's letter from the given choices directly."
OPEN = "Answer the question using a single word or phrase."
SUBJECTS = (
    "Accounting", "Agriculture", "Architecture_and_Engineering", "Art", "Art_Theory", "Basic_Medical_Science",
    "Biology", "Chemistry", "Clinical_Medicine", "Computer_Science", "Design",
    "Diagnostics_and_Laboratory_Medicine", "Economics", "Electronics", "Energy_and_Power", "Finance", "Geography",
    "History", "Literature", "Manage", "Marketing", "Materials", "Math", "Mechanical_Engineering", "Music",
    "Pharmacy", "Physics", "Psychology", "Public_Health", "Sociology",
)  # fmt: skip
IMAGE = re.compile(r"<image ([1-7])>")
TOKENS = {"reference": 10, "lm_eval": 512}


@dataclass(frozen=True)
class AnswerKey:
    """What the scorers need of a question: its options (none for an open one), the answer as the file has it."""

    options: tuple[str, ...]
    open: bool
    answer: str


class Mmmu(QuestionBenchmark):
    """Accuracy over all questions of the validation split.

    The protocol decides prompt, length of answers and how they are read.  `numbers` has the accuracy by its own
    reading and, on the same answers, by the other's: they are not interchangeable.
    """

    name: ClassVar[str] = "mmmu"
    new_tokens: ClassVar[int] = 10
    needed: ClassVar[Needed] = Needed(
        files=("a folder for each of 30 subjects with validation-00000-of-00001.parquet",),
        origin="https://huggingface.co/datasets/MMMU/MMMU", size="about 350 MB", items=900,
    )  # fmt: skip
    protocol: Literal["reference", "lm_eval"] = Field(
        default="reference",
        description="reference: BAGEL's prompts, ten tokens, first picture doubled, an empty answer is C; "
        "lm_eval: its prompts, 512 tokens, the official parser with its draw where no letter is found",
    )

    def tokens(self) -> int:
        return TOKENS[self.protocol]

    def check(self) -> None:
        self.require(self.folder)
        _parquet()
        if missing := [self.folder / subject for subject in SUBJECTS if not self._files(subject)]:
            raise self.missing(missing)

    def _files(self, subject: str) -> list[Path]:
        return sorted((self.folder / subject).glob("validation-*.parquet"))

    def shown(self, picture: Any, index: int) -> Any:
        """As in the reference, the first picture doubled in size."""
        if self.protocol != "reference" or index:
            return picture
        from PIL import Image

        return picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.BILINEAR)

    def questions(self) -> list[Question]:
        self.check()
        asked = _asked_reference if self.protocol == "reference" else _asked_lm_eval
        return [
            asked(row, subject)
            for subject in SUBJECTS
            for path in self._files(subject)
            for row in _rows(path)
        ]

    def right(self, item: AnsweredQuestion) -> bool:
        return self._readings(item)[self.protocol]

    def _readings(self, item: AnsweredQuestion) -> dict[str, bool]:
        """Whether an answer is right as each of the protocols reads it."""
        sheet = item.asked.more
        choice = None if sheet.open else parse_choice(item.answer, sheet.options)
        return {
            "reference": right_by_reference(item.answer, sheet),
            "lm_eval": right_by_lm_eval(item.answer, sheet, choice, f"{self.seed}:{item.asked.id}"),
        }

    def scored(self, answers: Sequence[AnsweredQuestion]) -> Score:
        readings: dict[str, dict[str, list[bool]]] = {"reference": {}, "lm_eval": {}}
        drawn: dict[str, list[bool]] = {}
        for item in answers:
            sheet = item.asked.more
            letterless = not sheet.open and parse_choice(item.answer, sheet.options) is None
            drawn.setdefault(item.asked.kind, []).append(letterless)
            for name, right in self._readings(item).items():
                readings[name].setdefault(item.asked.kind, []).append(right)
        other = "lm_eval" if self.protocol == "reference" else "reference"
        names = {self.protocol: self.protocol, f"{self.protocol} answers, {other} reading": other}
        numbers = {
            name: proportion(sum(map(sum, kinds.values())), sum(map(len, kinds.values())))
            for name, kinds in ((name, readings[reading]) for name, reading in names.items())
        }
        without = "answers without a letter"
        numbers[without] = proportion(sum(map(sum, drawn.values())), len(answers))
        made = {name: Made(top={name: 1}) for name in numbers}
        kinds = {name: readings[reading] for name, reading in names.items()} | {without: drawn}
        columns = {name: [value for values in of_it.values() for value in values] for name, of_it in kinds.items()}
        return with_numbers(score_of_grades(readings[self.protocol], ""), numbers, made, columns)


def right_by_reference(answer: str, sheet: AnswerKey) -> bool:
    """MMBench's reading of letters, exact; the official parser of open answers against any of those given."""
    if sheet.open:
        return judge_open(_several(sheet.answer), parse_open(answer))
    options = {letter: option.strip() for letter, option in zip(LETTERS, sheet.options, strict=False)}
    return mmbench_rules.parse(answer, options) == sheet.answer


def right_by_lm_eval(answer: str, sheet: AnswerKey, choice: str | None, draw: str) -> bool:
    """As lm-eval counts; where it draws a letter, one is drawn by `draw` alone, whatever was drawn before.

    Several answers to an open question are one text to lm-eval, brackets and all.
    """
    if sheet.open:
        return judge_open(sheet.answer, parse_open(answer))
    if choice is None:
        choice = random.Random(draw).choice(LETTERS[: len(sheet.options)])
    return choice == sheet.answer


def _several(answer: str) -> list[str] | str:
    """`['24', 'twenty-four']` as a list; anything else as it is."""
    if not answer.startswith("["):
        return answer
    try:
        found = ast.literal_eval(answer)
    except (ValueError, SyntaxError):
        return answer
    return [str(one) for one in found] if isinstance(found, list) else answer


def _asked_reference(row: dict[str, Any], subject: str) -> Question:
    """Options as "A. text"; all pictures that the row has, before the text."""
    sheet = _sheet(row)
    lines = [row["question"].strip()]
    lines += [f"{letter}. {option.strip()}" for letter, option in zip(LETTERS, sheet.options, strict=False)]
    numbers = [n for n in range(1, 8) if _has(row, n)]
    prompt = "\n".join([*lines, OPEN if sheet.open else CHOICE]).strip()
    return _asked(row, subject, prompt, numbers, sheet)


def _asked_lm_eval(row: dict[str, Any], subject: str) -> Question:
    """Options as "(A) text"; the pictures that the text speaks of, in its order, repeated where it repeats them."""
    sheet = _sheet(row)
    options = "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, sheet.options, strict=False))
    parts = [row["question"], *([] if sheet.open else [options]), OPEN if sheet.open else CHOICE]
    text = "\n\n".join(parts)
    numbers = [int(n) for n in IMAGE.findall(text) if _has(row, int(n))]
    return _asked(row, subject, IMAGE.sub("<image>", text), numbers, sheet)


def _asked(row: dict[str, Any], subject: str, prompt: str, numbers: Sequence[int], sheet: AnswerKey) -> Question:
    return Question(
        row["id"], prompt, _pictures(row, numbers), subject, sheet.answer, more=sheet, question=row["question"]
    )


def _sheet(row: dict[str, Any]) -> AnswerKey:
    try:
        options = ast.literal_eval(row["options"]) if isinstance(row["options"], str) else list(row["options"])
    except (ValueError, SyntaxError) as error:
        raise UsageError(f"mmmu: {row['id']}", f"options {row['options']!r} are no list", "replace the file") from error
    return AnswerKey(tuple(map(str, options)), row["question_type"] != "multiple-choice", str(row["answer"]))


def _has(row: dict[str, Any], number: int) -> bool:
    return bool((row.get(f"image_{number}") or {}).get("bytes"))


def _pictures(row: dict[str, Any], numbers: Sequence[int]) -> tuple[StoredPicture, ...]:
    return tuple(StoredPicture(f"{row['id']}: image_{n}", partial(bytes, row[f"image_{n}"]["bytes"])) for n in numbers)


@cache
def _parquet() -> Any:
    """pyarrow's reader; it is an extra, since only this format needs it."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        do = 'pip install "umcompress[benchmarks]"'
        raise UsageError("mmmu: reading parquet files", "pyarrow is not installed", do) from error
    return parquet


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    from pyarrow import ArrowException

    try:
        table = _parquet().read_table(path)
    except (ArrowException, OSError) as error:
        raise UsageError(f"mmmu: {path}", f"not readable as parquet: {error}", "replace it") from error
    wanted = {"id", "question", "options", "answer", "question_type", "image_1"}
    if missing := sorted(wanted - set(table.column_names)):
        raise UsageError(f"mmmu: {path}", f"no column {', '.join(missing)}", "replace it")
    yield from table.to_pylist()
