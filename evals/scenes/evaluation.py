"""Both tasks on the scenes world: pictures judged from their pixels, answers by exact match."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import Field, NonNegativeInt, PositiveInt

from umcompress.evals._benchmark import digest
from umcompress.evals.scenes import prompts, questions, world
from umcompress.evals.scenes.prompts import Prompt
from umcompress.extend import Evaluation, Score, ScoredItem, Task, UsageError, counting, processes, score_of_grades

if TYPE_CHECKING:
    import numpy as np

    from umcompress.extend import GenerationItem, Runner, TrainingItem, UnderstandingItem

CHUNK = 100
T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """One question about one evaluation scene."""

    scene: world.Scene
    question: questions.Question


class Scenes(Evaluation):
    """Small pictures of coloured shapes with exact ground truth.

    Generation: GenEval's six kinds, a detector for this world, GenEval's own rules; the mean of the kinds.
    Understanding: exact match of the greedily decoded answer; the mean of the kinds.  Scenes and prompt texts
    are disjoint from those of training and calibration.
    """

    name: ClassVar[str] = "scenes"
    prompts: PositiveInt = Field(default=1000, description="pictures to generate, spread over the six kinds")
    questions: PositiveInt = Field(default=2000, description="questions to ask, spread over the five kinds")
    limit: PositiveInt | None = Field(default=None, description="at most so many pictures and questions")
    seed: NonNegativeInt = Field(default=0, description="seed of the scenes, the prompts and the initial noise")

    def _count(self, wanted: int) -> int:
        return wanted if self.limit is None else min(wanted, self.limit)

    def run(self, runner: Runner, out: Path, progress: Callable[[str], None]) -> dict[Task, Score]:
        """Scores of the tasks that the runner has; answers, verdicts and a sheet of samples go to `out`."""
        scores: dict[Task, Score] = {}
        out.mkdir(parents=True, exist_ok=True)
        if "understanding" in runner.tasks:
            scores["understanding"] = self._understand(runner, out, progress)
        if "generation" in runner.tasks:
            scores["generation"] = self._generate(runner, out, progress)
        return scores

    # -- understanding -------------------------------------------------------------------------------------

    def asked(self) -> list[Asked]:
        """The questions of this evaluation: as many of each kind, evaluation scenes only."""
        import numpy as np

        rng = np.random.default_rng((self.seed, 11))
        found: list[Asked] = []
        while len(found) < self._count(self.questions):
            kind = questions.KINDS[len(found) % len(questions.KINDS)]
            scene = world.sample_scene(rng, "evaluation")
            drawn = questions.sample_questions(rng, scene, 1, [kind])
            found += [Asked(scene, question) for question in drawn]
        return found

    def _understand(self, runner: Runner, out: Path, progress: Callable[[str], None]) -> Score:
        asked = self.asked()

        def work(part: slice) -> list[str]:
            pictures = [world.render(item.scene) for item in asked[part]]
            found: list[str] = runner.answer(pictures, [item.question.text for item in asked[part]])
            return found

        answers = _shared(len(asked), CHUNK, work, "questions", progress)
        grades: dict[str, list[float]] = {kind: [] for kind in questions.KINDS}
        rows = []
        for item, answer in zip(asked, answers, strict=True):
            good = answer.strip().lower() == item.question.answer
            grades[item.question.kind].append(good)
            rows.append({
                "scene": world.scene_key(item.scene), "kind": item.question.kind,
                "question": item.question.text, "expected": item.question.answer, "answer": answer,
                "correct": good, **({} if good else {"picture": _encoded(world.render(item.scene))}),
            })
        _write_lines(out / "answers.jsonl", rows)
        items_of = digest(f"{world.scene_key(item.scene)} {item.question.text}" for item in asked)
        return score_of_grades(grades, items_of, questions.CHANCE, average="kinds")

    # -- generation ----------------------------------------------------------------------------------------

    def asked_prompts(self) -> list[Prompt]:
        """The prompts of this evaluation: as many of each kind; no text occurs in training."""
        import numpy as np

        rng = np.random.default_rng((self.seed, 12))
        kinds = [prompts.KINDS[index % len(prompts.KINDS)] for index in range(self._count(self.prompts))]
        return [prompts.sample_prompt(rng, kind, "evaluation") for kind in kinds]

    def _generate(self, runner: Runner, out: Path, progress: Callable[[str], None]) -> Score:
        from umcompress.evals.pictures.geneval_rules import judge
        from umcompress.evals.scenes.detector import detect
        from umcompress.evals.scenes.pictures import save_contact_sheet

        asked = self.asked_prompts()
        pictures = self._paint(runner, [prompt.text for prompt in asked], progress)
        side = world.IMAGE_SIZE
        if odd := next((picture.shape for picture in pictures if picture.shape[:2] != (side, side)), None):
            raise UsageError(
                "score generation with scenes",
                f"the model paints {odd[0]} x {odd[1]} pixels, and the scenes are {side} x {side}",
                f"set `sampling: {{height: {side}, width: {side}}}` if it paints other sizes, or leave scenes out",
            )  # fmt: skip
        grades: dict[str, list[float]] = {kind: [] for kind in prompts.KINDS}
        rows = []
        for prompt, picture in zip(asked, pictures, strict=True):
            verdict = judge(prompt.metadata, detect(picture))
            grades[prompt.kind].append(verdict.correct)
            rows.append({
                "kind": prompt.kind, "prompt": prompt.text, "correct": verdict.correct,
                "reason": verdict.reason,
            })
        _write_lines(out / "pictures.jsonl", rows)
        if processes.rank() == 0:
            texts = [prompt.text for prompt in asked[:SHOWN]]
            save_contact_sheet(out / "samples.png", pictures[:SHOWN], texts)
        items_of = digest([str(self.seed), *(prompt.text for prompt in asked)])
        return score_of_grades(grades, items_of, GENERATION_CHANCE, average="kinds")

    def _paint(self, runner: Runner, texts: Sequence[str], progress: Callable[[str], None]) -> list[Any]:
        """All pictures; several processes paint whole batches each, so that batches are those of one process."""
        if processes.world() == 1:
            with counting("scenes", "pictures", len(texts), progress, headed=True):
                pictures: list[Any] = runner.generate(texts, self.seed)
            return pictures

        def work(part: slice) -> list[Any]:
            found: list[Any] = runner.generate(texts[part], self.seed, places=range(part.start, part.stop))
            return found

        return _shared(len(texts), runner.batch_size or CHUNK, work, "pictures", progress)

    def scored_items(self, task: Task) -> list[ScoredItem]:
        """The prompts; scenes that are asked about are disjoint from all others by how they are drawn."""
        return [ScoredItem(prompt.text) for prompt in self.asked_prompts()] if task == "generation" else []

    # -- calibration ---------------------------------------------------------------------------------------

    def calibration_items(
        self, task: Task, samples: int, seed: int
    ) -> list[UnderstandingItem | GenerationItem]:
        """Training scenes with a question each, or training prompts; never what `run` scores."""
        import numpy as np

        from umcompress.extend import GenerationItem, UnderstandingItem

        rng = np.random.default_rng((seed, 13))
        if task == "generation":
            return [
                GenerationItem(prompts.sample_prompt(rng, kind).text, int(rng.integers(2**31)))
                for kind in _cycle(prompts.KINDS, samples)
            ]
        items: list[UnderstandingItem | GenerationItem] = []
        while len(items) < samples:
            scene = world.sample_scene(rng)
            kind = questions.KINDS[len(items) % len(questions.KINDS)]
            for question in questions.sample_questions(rng, scene, 1, [kind]):
                items.append(UnderstandingItem(world.render(scene), question.text, question.answer))
        return items

    def training_items(self, task: Task, count: int, seed: int) -> list[TrainingItem]:
        """Training prompts with a scene that satisfies each, or training scenes with a question each."""
        import numpy as np

        from umcompress.extend import ImageText, UnderstandingItem

        rng = np.random.default_rng((seed, 15))
        if task == "understanding":
            return [
                UnderstandingItem(world.render(scene), question.text, question.answer)
                for scene, question in _questioned(rng, count)
            ]
        drawn = [prompts.sample_prompt(rng, kind) for kind in rng.permutation(_cycle(prompts.KINDS, count))]
        return [ImageText(world.render(prompts.scene_for_prompt(rng, prompt)), prompt.text) for prompt in drawn]

    def held_out_items(self, task: Task, count: int, seed: int) -> list[TrainingItem]:
        """Evaluation prompts with a scene that satisfies each, or evaluation scenes with a question each."""
        import numpy as np

        from umcompress.extend import ImageText, UnderstandingItem

        rng = np.random.default_rng((seed, 16))
        if task == "understanding":
            return [
                UnderstandingItem(world.render(scene), question.text, question.answer)
                for scene, question in _questioned(rng, count, "evaluation")
            ]
        drawn = [prompts.sample_prompt(rng, kind, "evaluation") for kind in _cycle(prompts.KINDS, count)]
        return [ImageText(world.render(prompts.scene_for_prompt(rng, prompt)), prompt.text) for prompt in drawn]


SHOWN = 12
# Kind -> `generation_chance()`, which is the same in every run.
GENERATION_CHANCE = {
    "single_object": 0.06333333333333334, "two_object": 0.0033333333333333335, "counting": 0.0, "colors": 0.0,
    "position": 0.0, "color_attr": 0.0,
}  # fmt: skip


def _encoded(picture: Any) -> str:
    """A PNG as text, so that a report can show what a wrong answer is about."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


def _questioned(
    rng: np.random.Generator, count: int, split: world.Split = "training"
) -> Iterator[tuple[world.Scene, questions.Question]]:
    """Scenes, each with a question; the kinds take turns, from one drawn at random on."""
    found, first = 0, int(rng.integers(len(questions.KINDS)))
    while found < count:
        scene = world.sample_scene(rng, split)
        kind = questions.KINDS[(first + found) % len(questions.KINDS)]
        for question in questions.sample_questions(rng, scene, 1, [kind]):
            found += 1
            yield scene, question


@cache
def _chance_by_kind(seed: int, each: int) -> tuple[tuple[str, float], ...]:
    import numpy as np

    from umcompress.evals.pictures.geneval_rules import judge
    from umcompress.evals.scenes.detector import detect

    rng = np.random.default_rng((seed, 14))
    drawn = [
        detect(world.render(prompts.scene_for_prompt(rng, prompts.sample_prompt(rng, kind))))
        for kind in _cycle(prompts.KINDS, each)
    ]
    shares = []
    for kind in prompts.KINDS:
        asked = [prompts.sample_prompt(rng, kind) for _ in range(each)]
        right = sum(judge(prompt.metadata, found).correct for prompt, found in zip(asked, drawn, strict=True))
        shares.append((kind, right / each))
    return tuple(shares)


def generation_chance(seed: int = 0, each: int = 300) -> dict[str, float]:
    """Share of prompts that the true picture of another prompt, drawn at random, satisfies by luck."""
    return dict(_chance_by_kind(seed, each))


def _cycle(kinds: Sequence[str], count: int) -> list[str]:
    return [kinds[index % len(kinds)] for index in range(count)]


def _chunks(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _shared(
    count: int, size: int, work: Callable[[slice], list[T]], unit: str, progress: Callable[[str], None]
) -> list[T]:
    """What `work` makes of all items, in order: a chunk at a time, each process its share of the chunks."""
    chunks = processes.share(list(enumerate(_chunks(count, size))))
    mine, done = [], 0
    with counting("scenes", unit, sum(part.stop - part.start for _, part in chunks), progress, headed=True) as shown:
        for place, part in chunks:
            mine.append((place, work(part)))
            done += part.stop - part.start
            shown.reach(done)
    found = sorted((entry for entries in processes.gather(mine) for entry in entries), key=lambda entry: entry[0])
    return [item for _, items in found for item in items]


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    if processes.rank() == 0:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
