"""An evaluation of your own: questions about pictures that have one right word each."""

import json
from pathlib import Path
from typing import ClassVar

from PIL import Image
from pydantic import Field

from umcompress.extend import Evaluation, ScoredItem, UsageError, score_of_grades


class OneWord(Evaluation):
    """The share of questions that are answered with the right word, by kind of question."""

    name: ClassVar[str] = "one_word"
    tasks: ClassVar = ("understanding",)
    data: Path = Field(description="JSON lines with image, question, answer and kind; pictures beside the file")
    new_tokens: int = Field(default=8, ge=1, description="tokens that an answer may have")

    def rows(self):
        return [json.loads(line) for line in self.data.read_text(encoding="utf-8").split("\n") if line.strip()]

    def picture(self, row):
        return self.data.parent / row["image"]

    def check(self):
        if not self.data.is_file():
            raise UsageError(f"{self.name}: read {self.data}", "no such file", "name one with data:")
        if gone := [row["image"] for row in self.rows() if not self.picture(row).is_file()]:
            raise UsageError(f"{self.name}: the pictures of {self.data}", f"missing: {gone[0]}", "put them beside it")

    def scored_items(self, task):
        return [ScoredItem(row["question"], (self.picture(row),)) for row in self.rows()]

    def run(self, runner, out, progress):
        grades, lines = {}, []
        for number, row in enumerate(rows := self.rows(), 1):
            with Image.open(self.picture(row)) as opened:
                (answer,) = runner.answer([opened.convert("RGB")], [row["question"]], self.new_tokens)
            right = answer.strip().lower() == row["answer"].lower()
            grades.setdefault(row["kind"], []).append(right)
            lines.append(json.dumps({"question": row["question"], "answer": answer, "right": right}))
            progress(f"{self.name}: {number} of {len(rows)} questions")
        out.mkdir(parents=True, exist_ok=True)
        (out / "answers.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return {"understanding": score_of_grades(grades, items_of=str(self.data))}
