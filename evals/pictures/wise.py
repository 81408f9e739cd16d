"""WISE: do pictures show what their prompts only imply?  Pictures out, a judge's grades in.

Niu et al., "WISE" (2025), github.com/PKU-YuanGroup/WISE.  The judge is a model behind somebody's API: this paints
the pictures under their official names, writes what the judge is to be asked, and scores the grades that come back.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from umcompress.evals._benchmark import Benchmark, Needed, digest
from umcompress.evals.pictures._pictures import Wanted, paint
from umcompress.evals.pictures.wise_rules import GRADES, UNREAD, Graded, category, read_judge, scores_by_category
from umcompress.extend import (
    Made,
    Score,
    ScoredItem,
    Task,
    UsageError,
    files,
    lines_of,
    mean_of_kinds,
    mean_score,
    processes,
    text_of,
    with_grades,
    with_numbers,
)

if TYPE_CHECKING:
    from umcompress.extend import Runner

FILES = ("cultural_common_sense.json", "spatio-temporal_reasoning.json", "natural_science.json")
ASKED = "questions.jsonl"


@dataclass(frozen=True)
class Prompt:
    """One prompt, what a right picture shows, and where it belongs."""

    id: int
    text: str
    explanation: str
    subcategory: str

    @property
    def category(self) -> str:
        return category(self.id, self.subcategory)


class Wise(Benchmark):
    """1 000 prompts that take knowledge of the world, one picture each; scored from the grades of a judge.

    Without `grades`, pictures are painted and nothing is scored.
    """

    name: ClassVar[str] = "wise"
    tasks: ClassVar[tuple[Task, ...]] = ("generation",)
    needed: ClassVar[Needed] = Needed(
        files=FILES, origin="github.com/PKU-YuanGroup/WISE, folder data", size="about 0.5 MB", items=1000
    )
    grades: Path | None = Field(
        default=None, description="score this file instead of painting: JSON, or JSON lines, with prompt_id and "
        "consistency, realism and aesthetic_quality, 0 to 2 each, or the judge's text as `evaluation`",
    )

    def files(self) -> list[Path]:
        """The data: one file, or those of the folder."""
        return [self.folder] if self.folder.is_file() else [self.folder / name for name in FILES]

    def whole(self) -> list[Prompt]:
        """All prompts of the data."""
        self.require(*self.files())
        rows = [row for file in self.files() for row in _rows(file, "the prompts of wise")]
        try:
            prompts = [
                Prompt(int(row["prompt_id"]), str(row["Prompt"]), str(row.get("Explanation", "")),
                       str(row.get("Subcategory", "")))
                for row in rows
            ]
            for prompt in prompts:
                category(prompt.id, prompt.subcategory)
        except (KeyError, TypeError, ValueError) as error:
            found = f"a row without {error}" if isinstance(error, KeyError) else str(error)
            raise self.missing([], found) from error
        return prompts

    def scored_items(self, task: Task) -> list[ScoredItem]:
        return [ScoredItem(prompt.text) for prompt in self.whole()] if task == "generation" else []

    def check(self) -> None:
        prompts = self.whole()
        if self.grades is not None:
            self._graded(prompts)

    def run(self, runner: Runner, out: Path, progress: Callable[[str], None]) -> dict[Task, Score]:
        """Pictures and the judge's questions go to `out`; the score comes from `grades`."""
        started = time.monotonic()
        self.check()
        prompts = self.drawn(self.whole(), lambda prompt: prompt.category)
        if self.grades is not None:
            graded = self._graded(prompts)
            score = self._score(graded).model_copy(update={"variant": f"judged by whoever wrote {self.grades.name}"})
            return {"generation": self.timed(score, started, self.partial(len(graded)))}
        if "generation" not in runner.tasks:
            return {}
        wanted = [Wanted(f"{prompt.id}.png", prompt.text, prompt.id) for prompt in prompts]
        paint(self, runner, wanted, out, progress, digest(f"{p.id} {p.text}" for p in self.whole()))
        if processes.rank() == 0:
            _write_questions(out / ASKED, prompts)
        progress(
            f"wise: the pictures are in {out / 'images'}, what to ask a judge in {out / ASKED}; not scored: "
            "give the grades with `grades:`"
        )
        return {}

    def _graded(self, prompts: Sequence[Prompt]) -> list[Graded]:
        """The grades of these prompts.  UsageError where the file is not one of grades."""
        assert self.grades is not None
        asked = f"wise: grades {self.grades}"
        if not self.grades.is_file():
            raise UsageError(asked, "no such file", "name a file of JSON lines")
        known: dict[int, dict[str, float]] = {}
        for number, row in enumerate(_rows(self.grades, "wise: grades"), start=1):
            try:
                key, grades = int(row["prompt_id"]), _grades(row)
            except (KeyError, TypeError, ValueError) as error:
                found = f"row {number}: no {error}" if isinstance(error, KeyError) else f"row {number}: {error}"
                raise UsageError(asked, found, f"each row has prompt_id and {', '.join(GRADES)}") from error
            if key in known:
                raise UsageError(asked, f"prompt {key} is graded twice", "keep one row a prompt")
            known[key] = grades
        found_ = [Graded(p.id, p.subcategory, **known[p.id]) for p in prompts if p.id in known]
        if not found_:
            raise UsageError(asked, "it grades none of these prompts", "check prompt_id")
        return found_

    def _score(self, graded: Sequence[Graded]) -> Score:
        """The mean over categories, each with the same weight, as BAGEL's code has it; also that over all prompts."""
        values = scores_by_category(graded)
        score = mean_of_kinds({name: mean_score(found) for name, found in values.items()})
        everything = mean_score([value for found in values.values() for value in found])
        asked = digest(str(one.prompt_id) for one in graded)
        graded_score = with_grades(score, list(values.values()), asked)
        return with_numbers(graded_score, {"by size": everything}, {"by size": Made(pooled=True)})


def _rows(path: Path, asked: str) -> list[dict[str, Any]]:
    """The objects of a file: a JSON list, JSON lines, or an object of rows by prompt_id."""
    try:
        text = text_of(path)
        try:
            found = files.parse_json(text)
        except ValueError:
            found = [files.parse_json(line) for line in lines_of(text) if line.strip()]
    except (OSError, ValueError) as error:
        raise UsageError(f"{asked}: {path}", f"not readable: {error}", "name a JSON file, or JSON lines") from error
    if isinstance(found, dict):
        found = [found] if "prompt_id" in found else [
            {"prompt_id": key} | row for key, row in found.items() if isinstance(row, dict)
        ]
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise UsageError(f"{asked}: {path}", "no list of objects", "name a JSON file, or JSON lines")
    return found


def _grades(row: Mapping[str, Any]) -> dict[str, float]:
    """KeyError, ValueError."""
    grades = read_judge(str(row["evaluation"])) if "evaluation" in row else {name: float(row[name]) for name in GRADES}
    if UNREAD in grades.values():
        raise ValueError(f"prompt {row['prompt_id']} has a grade that could not be read; ask the judge again")
    if bad := [name for name, value in grades.items() if not 0 <= value <= 2]:
        raise ValueError(f"{bad[0]} {grades[bad[0]]:g} is not in 0 to 2")
    return grades


def _write_questions(path: Path, prompts: Sequence[Prompt]) -> None:
    lines = [
        {"prompt_id": p.id, "image": f"images/{p.id}.png", "Prompt": p.text, "Explanation": p.explanation,
         "Category": p.category, "Subcategory": p.subcategory}
        for p in prompts
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
