"""MM-Vet: open questions that a judge grades.  Answers go out in its format; grades come back in a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from umcompress.evals._benchmark import Needed
from umcompress.evals.answers._questions import AnsweredQuestion, Question, QuestionBenchmark, StoredPicture, read_text
from umcompress.extend import Score, UsageError, files, processes, proportion, with_grades

EXPORT = "mmvet.json"


class MmVet(QuestionBenchmark):
    """Writes mmvet.json, which the official judge reads; with the judge's grades, scores them.

    The score is the mean grade; the kinds are the six capabilities, of which a question may need several.
    """

    name: ClassVar[str] = "mmvet"
    new_tokens: ClassVar[int] = 1000
    needed: ClassVar[Needed] = Needed(
        files=("mm-vet.json", "images/"),
        origin="https://github.com/yuweihao/MM-Vet/releases (mm-vet.zip)", size="67 MB", items=218,
    )  # fmt: skip
    grades: Path | None = Field(
        default=None, description="the judge's file: id to a grade in 0..1, or to {score: [grades of several runs]}"
    )

    def check(self) -> None:
        self.require(self.folder / "mm-vet.json")
        if self.grades is not None and not self.grades.is_file():
            raise UsageError(f"mmvet: grades {self.grades}", "no such file", "leave grades out to export answers first")

    def questions(self) -> list[Question]:
        self.check()
        content = _mapping(self.folder / "mm-vet.json")
        found = []
        for key, row in content.items():
            if not isinstance(row, dict) or not {"imagename", "question", "capability"} <= row.keys():
                found_ = f"{key} lacks one of imagename, question, capability"
                raise UsageError(f"mmvet: {self.folder / 'mm-vet.json'}", found_, "replace the file")
            place = self.folder / "images" / row["imagename"]
            kind = " ".join(sorted(row["capability"]))
            shown = (StoredPicture(str(place), place),)
            found.append(Question(key, row["question"], shown, kind, None, more=tuple(row["capability"])))
        self.require(*dict.fromkeys(self.folder / "images" / content[item.id]["imagename"] for item in found))
        return found

    def finished(
        self, answers: Sequence[AnsweredQuestion], out: Path, progress: Callable[[str], None]
    ) -> Score | None:
        if processes.rank() == 0:
            export = {item.asked.id: item.answer for item in answers}
            (out / EXPORT).write_text(json.dumps(export, ensure_ascii=False, indent=1), encoding="utf-8")
        if self.grades is None:
            progress(f"mmvet: {out / EXPORT} is for the judge; give its grades with the option grades")
        return self.scored(answers)

    def scored(self, answers: Sequence[AnsweredQuestion]) -> Score | None:
        if self.grades is None:
            return None
        content = _mapping(self.grades)
        missing = [item.asked.id for item in answers if item.asked.id not in content]
        if missing:
            some = ", ".join(missing[:3])
            raise UsageError(
                f"mmvet: grades {self.grades}", f"no grade for {len(missing)} questions, such as {some}",
                "have the judge grade all answers",
            )
        grades = {item.asked.id: _grade(content[item.asked.id], item.asked.id, self.grades) for item in answers}
        by_kind: dict[str, list[float]] = {}
        for item in answers:
            for capability in item.asked.more:
                by_kind.setdefault(capability, []).append(grades[item.asked.id])
        kinds = {name: proportion(sum(values), len(values)) for name, values in by_kind.items()}
        whole = proportion(sum(grades.values()), len(grades))
        score = Score(value=whole.value, low=whole.low, high=whole.high, n=whole.n, by_kind=kinds)
        return with_grades(score, [list(grades.values())], "")


def _mapping(path: Path) -> dict[str, Any]:
    try:
        content = files.parse_json(read_text(path, f"mmvet: {path}"))
    except ValueError as error:
        raise UsageError(f"mmvet: {path}", f"not JSON: {error}", "replace the file") from error
    if not isinstance(content, dict) or not content:
        raise UsageError(f"mmvet: {path}", "not a JSON object with an entry a question", "replace the file")
    return content


def _grade(value: Any, key: str, path: Path) -> float:
    """A number, or the mean of a judge's runs."""
    runs = value.get("score") if isinstance(value, dict) else [value]
    runs = runs if isinstance(runs, list) else []
    if not runs or not all(type(run) in (int, float) and 0 <= run <= 1 for run in runs):
        raise UsageError(f"mmvet: grades {path}", f"the grade of {key} is {value!r}", "grades are numbers from 0 to 1")
    return float(sum(runs) / len(runs))
