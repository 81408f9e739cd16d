"""POPE: is there a ... in the image?  Three ways to choose what is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from umcompress.evals._benchmark import Needed
from umcompress.evals.answers._questions import AnsweredQuestion, Question, QuestionBenchmark, StoredPicture, read_text
from umcompress.evals.answers.pope_rules import CATEGORIES, PopeScore, parse
from umcompress.evals.answers.pope_rules import score as pope_score
from umcompress.extend import (
    KindScore,
    Made,
    Score,
    UsageError,
    files,
    lines_of,
    proportion,
    score_of_grades,
    with_numbers,
)

PROMPT = "Answer the question using a single word or phrase."
# The numbers of a category, of what was said and what is true of each item.
MADE = {
    "accuracy": Made(), "precision": Made(top={"both": 1}, bottom={"said yes": 1}),
    "recall": Made(top={"both": 1}, bottom={"is yes": 1}), "yes_ratio": Made(top={"said yes": 1}),
    "f1": Made(top={"both": 2}, bottom={"said yes": 1, "is yes": 1}),
}  # fmt: skip


class Pope(QuestionBenchmark):
    """The score is the mean accuracy of the categories; `numbers` has accuracy, precision, recall, F1, yes ratio."""

    name: ClassVar[str] = "pope"
    new_tokens: ClassVar[int] = 100
    needed: ClassVar[Needed] = Needed(
        files=("coco_pope_random.json", "coco_pope_popular.json", "coco_pope_adversarial.json", "val2014/"),
        origin="https://github.com/AoiDragon/POPE (output/coco) and COCO's val2014 pictures, https://cocodataset.org",
        size="1 MB, and 6 GB of pictures of which 500 are used", items=8910,
    )  # fmt: skip

    def check(self) -> None:
        self.require(self.folder, *(self._list(category) for category in CATEGORIES))

    def _list(self, category: str) -> Path:
        inner = self.folder / "coco" / f"coco_pope_{category}.json"
        return inner if inner.is_file() else self.folder / f"coco_pope_{category}.json"

    def questions(self) -> list[Question]:
        self.check()
        found: list[Question] = []
        absent: dict[Path, None] = {}
        for category in CATEGORIES:
            path = self._list(category)
            for number, line in enumerate(lines_of(read_text(path, f"POPE's {category}")), start=1):
                if not line.strip():
                    continue
                row = _row(line, path, number)
                places = (self.folder / "val2014" / row["image"], self.folder / row["image"])
                place = next((place for place in places if place.is_file()), None)
                if place is None:
                    absent[places[0]] = None
                    continue
                prompt = f"{row['text']}\n{PROMPT}"
                key = f"{category}/{row['question_id']}"
                found.append(Question(key, prompt, (StoredPicture(str(place), place),), category, row["label"],
                                   question=row["text"]))  # fmt: skip
        if absent:
            raise self.missing(absent)
        return found

    def right(self, item: AnsweredQuestion) -> bool:
        return _right(item)

    def scored(self, answers: Sequence[AnsweredQuestion]) -> Score:
        parts: dict[str, PopeScore] = {}
        for category in dict.fromkeys(item.asked.kind for item in answers):
            of_it = [item for item in answers if item.asked.kind == category]
            parts[category] = pope_score([parse(item.answer) for item in of_it], [item.asked.truth for item in of_it])
        grades = {
            name: [_right(item) for item in answers if item.asked.kind == name]
            for name in parts
        }
        whole = score_of_grades(grades, "", dict.fromkeys(parts, 0.5), average="kinds")
        named = {f"{name} {key}": value for name, part in parts.items() for key, value in numbers(part).items()}
        made = {
            f"{name} {key}": MADE[key].model_copy(update={"kinds": (place,)})
            for place, name in enumerate(parts) for key in MADE
        }  # fmt: skip
        in_order = [item for name in parts for item in answers if item.asked.kind == name]
        said = [parse(item.answer) != "no" for item in in_order]
        true = [item.asked.truth != "no" for item in in_order]
        both = [one and other for one, other in zip(said, true, strict=True)]
        return with_numbers(whole, named, made, {"said yes": said, "is yes": true, "both": both})


def _right(item: AnsweredQuestion) -> bool:
    """As the rules count: any label but "no" means yes."""
    return (parse(item.answer) == "no") == bool(item.asked.truth == "no")


def numbers(part: PopeScore) -> dict[str, KindScore]:
    """The five numbers of a category; where one has no meaning it is left out."""
    said_yes, is_yes = part.true_yes + part.false_yes, part.true_yes + part.false_no
    counts = {
        "accuracy": (part.right, part.n), "precision": (part.true_yes, said_yes), "recall": (part.true_yes, is_yes),
        "yes_ratio": (said_yes, part.n),
    }  # fmt: skip
    found = {name: proportion(*pair) for name, pair in counts.items() if pair[1]}
    if union := said_yes + part.false_no:
        # F1 = 2J / (1 + J) of the Jaccard share J, which is a proportion and has its interval.
        j = proportion(part.true_yes, union)
        low, value, high = (2 * x / (1 + x) for x in (j.low, j.value, j.high))
        found["f1"] = KindScore(value=value, low=low, high=high, n=union)
    return found


def _row(line: str, path: Path, number: int) -> dict[str, str]:
    try:
        row = files.parse_json(line)
    except ValueError as error:
        raise UsageError(f"pope: {path}", f"line {number} is not JSON: {error}", "replace the file") from error
    keys = ("question_id", "image", "text", "label")
    if not isinstance(row, dict) or not all(key in row for key in keys):
        raise UsageError(f"pope: {path}", f"line {number} lacks one of {', '.join(keys)}", "replace the file")
    return {key: str(row[key]) for key in keys}
