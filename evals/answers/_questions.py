"""The base of benchmarks that ask questions about pictures."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from umcompress.evals._benchmark import Benchmark, Row, digest
from umcompress.extend import Score, ScoredItem, Task, UsageError, open_picture, text_of

if TYPE_CHECKING:
    from umcompress.extend import Runner

KEPT = 16  # decoded pictures: questions about one picture follow each other


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
        """answers.jsonl in `out` has a row a question: its id, kind, prompt and answer."""
        if "understanding" not in runner.tasks:
            raise UsageError(f"the evaluation {self.name}", "this model answers no questions", "leave it out")
        started = time.monotonic()
        questions = self.questions()
        chosen = self.drawn(questions, lambda item: item.kind, lambda item: item.group or item.id)
        if not chosen:
            raise UsageError(f"{self.name}: limit {self.limit}", "no group of questions fits into it", "raise it")
        decoder = Decoder()

        def work(items: Sequence[Question]) -> list[Row]:
            pictures = [
                [self.shown(decoder(shown), index) for index, shown in enumerate(item.pictures)] for item in items
            ]
            entries = [several if len(several) != 1 else several[0] for several in pictures]
            answers = runner.answer(entries, [item.prompt for item in items], self.tokens())
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
        partial = self.partial(len(chosen), self.whole(questions))
        if score.items:
            score = score.model_copy(update={"items_of": digest(f"{item.id} {item.prompt}" for item in chosen)})
        return {"understanding": self.timed(score, started, partial, out)}

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


def read_text(path: Path, asked: str) -> str:
    """The text of a data file.  UsageError."""
    try:
        return text_of(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(asked, f"{path} cannot be read: {error}", "replace it") from error
