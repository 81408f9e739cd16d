"""The base of benchmarks that ask questions about pictures."""

from __future__ import annotations

import base64
import io
import json
import time
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from umcompress.evals._benchmark import Benchmark, Row, digest
from umcompress.extend import (
    Score,
    ScoredItem,
    Task,
    UsageError,
    open_picture,
    processes,
    text_of,
    write_text_atomic,
)

if TYPE_CHECKING:
    from umcompress.extend import Runner

KEPT = 16  # decoded pictures: questions about one picture follow each other
GRADED = "graded.jsonl"
SMALL = 160  # pixels of the longer side of a picture beside a wrong answer


@dataclass(frozen=True)
class StoredPicture:
    """A picture as it is stored: a file, or the bytes of one.  `name` tells pictures apart."""

    name: str
    source: Path | Callable[[], bytes] = field(compare=False)

    def stored(self) -> bytes | Path:
        """The file, or its content."""
        return self.source if isinstance(self.source, Path) else self.source()

    def open(self) -> Any:
        """The decoded picture, RGB."""
        return open_picture(self.stored(), f"the picture {self.name}")


@dataclass(frozen=True)
class Question:
    """One question.  `group` holds together what is scored together; `more` is what the scorer needs besides.

    question: without the options and what asks for a short answer.
    """

    id: str
    prompt: str
    pictures: tuple[StoredPicture, ...]
    kind: str
    truth: Any
    group: str = ""
    more: Any = None
    question: str = ""


@dataclass(frozen=True)
class AnsweredQuestion:
    """A question and what the model said."""

    asked: Question
    answer: str


class Decoder:
    """Decodes a picture once, not once a question."""

    def __init__(self, change: Callable[[Any], Any] | None = None) -> None:
        self._kept: OrderedDict[StoredPicture, Any] = OrderedDict()
        self.decoded = 0

    def __call__(self, shown: StoredPicture) -> Any:
        if shown not in self._kept:
            self._kept[shown] = shown.open()
            self.decoded += 1
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(shown)
        return self._kept[shown]


class QuestionBenchmark(Benchmark):
    """Reads questions, has them answered greedily, scores the answers."""

    tasks: ClassVar[tuple[Task, ...]] = ("understanding",)
    new_tokens: ClassVar[int]

    @abstractmethod
    def questions(self) -> list[Question]:
        """All questions of the data; those about one picture follow each other.  UsageError."""

    @abstractmethod
    def scored(self, answers: Sequence[AnsweredQuestion]) -> Score | None:
        """The score of the answers; None where the data holds no truth to score against.

        `run` fills in which items it is of.
        """

    def right(self, item: AnsweredQuestion) -> bool | None:
        """Whether an answer is right by itself; None where that cannot be told."""
        return None

    def expected(self, item: AnsweredQuestion) -> str:
        """The right answer as a reader is shown it."""
        return str(item.asked.truth)

    def shown(self, picture: Any, index: int) -> Any:
        """The picture as the model is to see it; `index` is its place in the question."""
        return picture

    def whole(self, questions: Sequence[Question]) -> int:
        """How many questions the whole benchmark has."""
        return max(self.needed.items, len(questions))

    def tokens(self) -> int:
        """How long an answer may become."""
        return self.new_tokens

    def run(self, runner: Runner, out: Path, progress: Callable[[str], None]) -> dict[Task, Score]:
        """answers.jsonl in `out` has a row a question: its id, kind, prompt and answer; graded.jsonl says which are
        right, and shows what the wrong ones are about: a report has those that a step made wrong.
        """
        if "understanding" not in runner.tasks:
            raise UsageError(f"the evaluation {self.name}", "this model answers no questions", "leave it out")
        started = time.monotonic()
        questions = self.questions()
        chosen = self.drawn(questions, lambda item: item.kind, lambda item: item.group or item.id)
        if not chosen:
            raise UsageError(f"{self.name}: limit {self.limit}", "no group of questions fits into it", "raise it")
        decoder, small = Decoder(), dict[StoredPicture, str]()

        def work(items: Sequence[Question]) -> list[Row]:
            pictures = [
                [self.shown(decoder(shown), index) for index, shown in enumerate(item.pictures)] for item in items
            ]
            entries = [several if len(several) != 1 else several[0] for several in pictures]
            answers = runner.answer(entries, [item.prompt for item in items], self.tokens())
            # While they are decoded: what a report shows beside a wrong answer.
            for item, answer in zip(items, answers, strict=True):
                if self.right(AnsweredQuestion(item, answer)) is False:
                    small.update({shown: _small(decoder(shown)) for shown in item.pictures if shown not in small})
            return [
                {"id": item.id, "kind": item.kind, "prompt": item.prompt, "answer": answer}
                for item, answer in zip(items, answers, strict=True)
            ]

        known = {"questions": digest(f"{item.id} {item.prompt}" for item in questions), "tokens": self.tokens()}
        rows = self.collect(chosen, out, lambda item: item.id, work, progress, runner=runner, settings=known)
        answers = [AnsweredQuestion(item, row["answer"]) for item, row in zip(chosen, rows, strict=True)]
        score = self.finished(answers, out, progress)
        if score is None:
            return {}
        if processes.rank() == 0:
            self._write_graded(answers, out / GRADED, lambda shown: small.get(shown) or _small(decoder(shown)))
        partial = self.partial(len(chosen), self.whole(questions))
        if score.items:
            score = score.model_copy(update={"items_of": digest(f"{item.id} {item.prompt}" for item in chosen)})
        return {"understanding": self.timed(score, started, partial, out)}

    def _write_graded(
        self, answers: Sequence[AnsweredQuestion], file: Path, small: Callable[[StoredPicture], str]
    ) -> None:
        grades = [self.right(item) for item in answers]
        if None in grades:
            return
        rows: list[Row] = []
        for item, good in zip(answers, grades, strict=True):
            asked = item.asked
            row = {"id": asked.id, "question": asked.question or asked.prompt, "expected": self.expected(item),
                   "answer": item.answer, "correct": good}  # fmt: skip
            pictures = [] if good else [small(shown) for shown in asked.pictures]
            rows.append({**row, "pictures": pictures} if pictures else row)
        write_text_atomic(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def scored_items(self, task: Task) -> Iterator[ScoredItem]:
        """The bare questions with their pictures as they are stored."""
        for item in self.questions() if task == "understanding" else ():
            yield ScoredItem(item.question or item.prompt, tuple(shown.stored() for shown in item.pictures))

    def finished(
        self, answers: Sequence[AnsweredQuestion], out: Path, progress: Callable[[str], None]
    ) -> Score | None:
        """The score; a benchmark that exports answers does so here."""
        score = self.scored(answers)
        if score is None:
            kept = out / "answers.jsonl"
            progress(f"{self.name}: the data holds no answers to score against; {kept} has the model's")
        return score


def _small(picture: Any) -> str:
    """A decoded picture as a small PNG in base64."""
    copy, file = picture.copy(), io.BytesIO()
    copy.thumbnail((SMALL, SMALL))
    copy.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


def read_text(path: Path, asked: str) -> str:
    """The text of a data file.  UsageError."""
    try:
        return text_of(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(asked, f"{path} cannot be read: {error}", "replace it") from error
