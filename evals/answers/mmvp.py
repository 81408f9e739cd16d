"""MMVP: pairs of pictures that CLIP takes for the same, one question about both."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import ClassVar

from umcompress.evals._benchmark import Needed
from umcompress.evals.answers._questions import AnsweredQuestion, Question, QuestionBenchmark, StoredPicture, read_text
from umcompress.evals.answers.mmvp_rules import letter, options, pairs, parse
from umcompress.extend import Made, Score, UsageError, proportion, score_of_grades, with_numbers

PROMPT = "Answer with the option's letter from the given choices directly."
FOLDERS = ("MMVP Images", "MMVP_Images", "images")


class Mmvp(QuestionBenchmark):
    """The score is the share of pairs with both answers right; `numbers` has that of single answers too."""

    name: ClassVar[str] = "mmvp"
    new_tokens: ClassVar[int] = 100
    needed: ClassVar[Needed] = Needed(
        files=("Questions.csv", "MMVP Images/"), origin="https://huggingface.co/datasets/MMVP/MMVP",
        size="about 20 MB", items=300,
    )  # fmt: skip

    def check(self) -> None:
        self.require(self.folder / "Questions.csv")

    def questions(self) -> list[Question]:
        self.check()
        path = self.folder / "Questions.csv"
        rows = list(csv.DictReader(io.StringIO(read_text(path, self.name))))
        wanted = {"Question", "Options", "Correct Answer"}
        if not rows or not wanted <= rows[0].keys() or not {"Index", "lndex"} & rows[0].keys():
            has = ", ".join(rows[0]) if rows else "no rows"
            columns = ", ".join(["Index", *sorted(wanted)])
            raise UsageError(f"mmvp: {path}", f"columns {columns} wanted, found {has}", "replace it")
        if len(rows) % 2:
            raise UsageError(f"mmvp: {path}", f"{len(rows)} questions do not make pairs", "replace it")
        places = [self.folder / name for name in FOLDERS]
        folder = next((place for place in places if place.is_dir()), places[0])
        found = []
        for place, row in enumerate(rows):
            index = row.get("Index") or row.get("lndex") or ""  # some copies of the file misspell it
            choices = options(row["Options"])
            lines = [row["Question"], *(f"{name}. {option}" for name, option in choices.items()), PROMPT]
            file = folder / f"{index}.jpg"
            picture = StoredPicture(str(file), file)
            found.append(
                Question(index, "\n".join(lines), (picture,), "all", letter(row["Correct Answer"]),
                      str(place // 2), choices, row["Question"])
            )  # fmt: skip
        self.require(*(picture.source for item in found for picture in item.pictures if not callable(picture.source)))
        return found

    def right(self, item: AnsweredQuestion) -> bool:
        return bool(parse(item.answer, item.asked.more) == item.asked.truth)

    def scored(self, answers: Sequence[AnsweredQuestion]) -> Score:
        right = [self.right(item) for item in answers]
        both = pairs(right)
        numbers = {"pairs": proportion(*both), "single": proportion(sum(right), len(right))}
        grades = [float(first and second) for first, second in zip(right[::2], right[1::2], strict=True)]
        score = score_of_grades({"pairs": grades}, "", {"pairs": 0.25}).model_copy(update={"by_kind": {}})
        single = [(first + second) / 2 for first, second in zip(right[::2], right[1::2], strict=True)]
        made = {"pairs": Made(), "single": Made(top={"single": 1})}
        return with_numbers(score, numbers, made, {"single": single})
