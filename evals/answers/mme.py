"""MME: 14 tasks of yes-or-no questions, two about each picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from umcompress.evals._benchmark import Needed
from umcompress.evals.answers._questions import AnsweredQuestion, Question, QuestionBenchmark, StoredPicture, read_text
from umcompress.evals.answers.mme_rules import (
    COGNITION,
    PERCEPTION,
    TASKS,
    Line,
    clean,
    parse,
    picture_grades,
    score_task,
)
from umcompress.extend import (
    KindScore,
    Made,
    Score,
    UsageError,
    lines_of,
    score_of_counts,
    with_grades,
    with_numbers,
)

PROMPT = "Answer the question using a single word or phrase."
SUFFIXES = (".jpg", ".png", ".jpeg")
GROUPS = {"MME": TASKS, "Perception": PERCEPTION, "Cognition": COGNITION}


class Mme(QuestionBenchmark):
    """Perception and cognition, scored as accuracy plus accuracy of both questions about a picture.

    The score is the share of the 2800 points; `numbers` has the points themselves.
    """

    name: ClassVar[str] = "mme"
    new_tokens: ClassVar[int] = 20
    needed: ClassVar[Needed] = Needed(
        files=("the folder MME_Benchmark_release_version (14 tasks with pictures and question lists)",),
        origin="its authors on request: https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models",
        size="about 1 GB", items=2374,
    )  # fmt: skip

    def check(self) -> None:
        self.require(self.folder)
        missing = [self.folder / f"{task}.txt" for task in TASKS if not self._lists(task)]
        if missing:
            raise self.missing(missing)

    def _roots(self) -> list[Path]:
        inner = self.folder / "MME_Benchmark_release_version"
        return [self.folder, inner] if inner.is_dir() else [self.folder]

    def _lists(self, task: str) -> list[Path]:
        """The task's one list `<task>.txt`, else the lists of single pictures."""
        for root in self._roots():
            for folder in (root, root / "Your_Results", root / "eval_tool" / "Your_Results"):
                if (folder / f"{task}.txt").is_file():
                    return [folder / f"{task}.txt"]
        for root in self._roots():
            for folder in (root / task / "questions_answers_YN", root / task):
                if found := sorted(folder.glob("*.txt")):
                    return found
        return []

    def _picture(self, task: str, image: str) -> Path | None:
        names = [image] if Path(image).suffix else [image + suffix for suffix in SUFFIXES]
        folders = [folder for root in self._roots() for folder in (root / task, root / task / "images")]
        return next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)

    def questions(self) -> list[Question]:
        found: list[Question] = []
        absent: list[Path] = []
        for task in TASKS:
            lists = self._lists(task)
            if not lists:
                raise self.missing([self.folder / f"{task}.txt"])
            by_image: dict[str, list[Question]] = {}
            for image, question, truth in _rows(task, lists):
                place = self._picture(task, image)
                if place is None:
                    absent.append(self.folder / task / image)
                    continue
                key = f"{task}/{image}"
                asked = by_image.setdefault(key, [])
                prompt = f"{question} {PROMPT}"
                picture = StoredPicture(str(place), place)
                number = f"{key}/{len(asked) + 1}"
                asked.append(Question(number, prompt, (picture,), task, truth, key, question=question))
            odd = [key for key, asked in by_image.items() if len(asked) != 2]
            if odd and not absent:
                raise UsageError(
                    f"{self.name}: {lists[0]}", f"not two questions about {', '.join(odd[:3])}", "mend the list"
                )
            found += [item for asked in by_image.values() for item in asked]
        if absent:
            raise self.missing(absent)
        return found

    def right(self, item: AnsweredQuestion) -> bool:
        return bool(parse(clean(item.answer)) == item.asked.truth.lower())

    def scored(self, answers: Sequence[AnsweredQuestion]) -> Score:
        parts: dict[str, tuple[float, int]] = {}
        grades: list[list[float]] = []
        numbers: dict[str, KindScore] = {}
        for task in TASKS:
            of_it = [item for item in answers if item.asked.kind == task]
            lines = [Line(item.asked.group, item.asked.truth, clean(item.answer)) for item in of_it]
            if lines:
                found = score_task(lines)
                grades.append(picture_grades(lines))
                parts[task] = (found.images * found.score / 200, found.images)
        whole = score_of_counts(parts, dict.fromkeys(parts, 0.375), average="kinds")
        for name, tasks in GROUPS.items():
            if all(task in parts for task in tasks):
                mean = score_of_counts({task: parts[task] for task in tasks}, average="kinds")
                numbers[name] = points(mean, 200 * len(tasks))
        there = list(parts)
        made = {
            name: Made(kinds=tuple(there.index(task) for task in tasks if task in parts), scale=200 * len(tasks))
            for name, tasks in GROUPS.items()
        }  # fmt: skip
        return with_numbers(with_grades(whole, grades, ""), numbers, made)


def points(mean: KindScore, most: float) -> KindScore:
    """A share as points of `most`."""
    return KindScore(value=mean.value * most, low=mean.low * most, high=mean.high * most, n=mean.n)


def _rows(task: str, lists: Sequence[Path]) -> Iterable[tuple[str, str, str]]:
    """(image, question, Yes or No) of a task: three columns in its one list, two in a picture's own."""
    for path in lists:
        single = path.stem != task
        for number, line in enumerate(lines_of(read_text(path, f"MME's {task}")), start=1):
            if not line.strip():
                continue
            cells = line.strip().split("\t")
            cells = [path.stem, *cells] if single else cells
            if len(cells) < 3 or cells[2].strip().lower() not in ("yes", "no"):
                wanted = "question, tab, Yes or No" if single else "image, tab, question, tab, Yes or No"
                raise UsageError(f"MME's {task}", f"{path}:{number} is not: {wanted}", "replace the file")
            yield cells[0], cells[1], cells[2].strip()
