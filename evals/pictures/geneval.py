"""GenEval: do pictures show the objects, counts, colours and positions that their prompts ask for?

Ghosh et al., "GenEval" (2023), github.com/djghosh13/geneval.  Pictures go into the official folders, so the official
program can judge them too; here they are judged by its rules with another detector, or from detections in a file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, PositiveInt

from umcompress.evals._benchmark import Benchmark, Needed, Row, digest
from umcompress.evals.pictures._geneval_files import Precomputed, Prompt, as_row, read_prompts
from umcompress.evals.pictures._pictures import Wanted, device_of, open_rgb, paint, picture_grid
from umcompress.evals.pictures.geneval_rules import TAGS, judge
from umcompress.extend import (
    Made,
    Score,
    ScoredItem,
    Task,
    UsageError,
    grouped_proportion,
    mean_of_kinds,
    processes,
    proportion,
    with_grades,
    with_numbers,
)

if TYPE_CHECKING:
    from umcompress.extend import Runner

METADATA = "evaluation_metadata.jsonl"
NOISES = 64  # at most so many pictures a prompt: its noises do not depend on how many are asked for
ORIGINAL = "GenEval's own are mmdet's Mask2Former and open_clip's ViT-L-14"
MADE = {
    "pictures right": Made(top={"right": 1}, bottom={"pictures": 1}, pooled=True),
    "prompts with a right picture": Made(top={"any right": 1}, pooled=True),
}  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """What is known of one picture."""

    prompt: Prompt
    row: Row


class GenEval(Benchmark):
    """553 prompts, four pictures each, judged from what a detector finds; the mean of the six kinds of prompts.

    Without `detector` and `classifier`, and without `detections`, pictures are painted and nothing is scored.
    """

    name: ClassVar[str] = "geneval"
    tasks: ClassVar[tuple[Task, ...]] = ("generation",)
    needed: ClassVar[Needed] = Needed(
        files=(METADATA,), origin="github.com/djghosh13/geneval, folder prompts (MIT)", size="about 0.1 MB", items=2212
    )
    images: PositiveInt = Field(default=4, le=NOISES, description="pictures a prompt")
    detector: Path | None = Field(
        default=None, description="folder of a transformers Mask2Former for COCO instances, such as "
        "facebook/mask2former-swin-small-coco-instance: a variant of GenEval's detector",
    )
    classifier: Path | None = Field(
        default=None, description="folder of a transformers CLIP for colours, such as openai/clip-vit-large-patch14"
    )
    detections: Path | None = Field(
        default=None, description="score this file instead of painting: JSON lines with `filename` and `detections` "
        "(class, box, score, color), as in results.jsonl, or the results of the official program",
    )

    @property
    def metadata(self) -> Path:
        """The file of prompts: named itself, or in the folder."""
        return self.folder if self.folder.is_file() else self.folder / METADATA

    def whole(self) -> list[Prompt]:
        """All prompts of the file."""
        self.require(self.metadata)
        return read_prompts(self.metadata)

    def scored_items(self, task: Task) -> list[ScoredItem]:
        return [ScoredItem(prompt.text) for prompt in self.whole()] if task == "generation" else []

    def check(self) -> None:
        from umcompress.evals.pictures._clip import check_folder

        prompts = self.whole()
        if (self.detector is None) != (self.classifier is None):
            has, lacks = ("detector", "classifier") if self.detector else ("classifier", "detector")
            raise UsageError(f"geneval: {has}", f"there is no {lacks}", f"name both, or neither; add {lacks}: FOLDER")
        if self.detector is not None and self.classifier is not None:
            check_folder(self.detector, "mask2former", f"geneval: detector {self.detector}")
            check_folder(self.classifier, "clip", f"geneval: classifier {self.classifier}")
        if self.detections is not None:
            Precomputed.read(self.detections, prompts)

    def run(self, runner: Runner, out: Path, progress: Callable[[str], None]) -> dict[Task, Score]:
        """The score; pictures, verdicts with their detections and a sheet of samples go to `out`."""
        started = time.monotonic()
        self.check()
        if "generation" not in runner.tasks:
            return {}
        prompts = self.drawn(self.whole(), lambda prompt: prompt.tag)
        if self.detections is not None:
            judged, variant = self._read(prompts), f"judged from {self.detections.name}"
        else:
            self._paint(runner, prompts, out, progress)
            if self.detector is None:
                progress(f"geneval: the pictures are in {out / 'images'}; not scored: no detector and classifier named")
                return {}
            judged, variant = self._judge(runner, prompts, out, progress)
        score = self._score(judged).model_copy(update={"variant": variant})
        return {"generation": self.timed(score, started, self.partial(len(judged)), out)}

    # -- pictures --------------------------------------------------------------------------------------------------

    def _files(self, prompts: Sequence[Prompt]) -> list[tuple[Prompt, Wanted]]:
        def picture(prompt: Prompt, number: int) -> Wanted:
            file = f"{prompt.index:05d}/samples/{number:04d}.png"
            return Wanted(file, prompt.text, prompt.index * NOISES + number)

        return [(prompt, picture(prompt, number)) for prompt in prompts for number in range(self.images)]

    def _paint(self, runner: Runner, prompts: Sequence[Prompt], out: Path, progress: Callable[[str], None]) -> None:
        wanted = [picture for _, picture in self._files(prompts)]
        if processes.rank() == 0:
            for prompt in prompts:
                folder = out / "images" / f"{prompt.index:05d}"
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "metadata.jsonl").write_text(prompt.line, encoding="utf-8")
        paint(self, runner, wanted, out, progress, digest(prompt.line for prompt in self.whole()))
        for prompt in processes.share(prompts):
            folder = out / "images" / f"{prompt.index:05d}"
            picture_grid(folder / "grid.png", [folder / f"samples/{number:04d}.png" for number in range(self.images)])
        processes.gather(None)  # the folder is whole when any of the processes goes on

    # -- verdicts --------------------------------------------------------------------------------------------------

    def _judge(
        self, runner: Runner, prompts: Sequence[Prompt], out: Path, progress: Callable[[str], None]
    ) -> tuple[list[Judged], str]:
        assert self.detector is not None and self.classifier is not None
        judges = Judges(self.detector, self.classifier, device_of(runner))
        files = self._files(prompts)

        def work(part: Sequence[tuple[Prompt, Wanted]]) -> list[Row]:
            return [judges.verdict(prompt, item.file, out / "images" / item.file) for prompt, item in part]

        rows = self.collect(
            files, out, lambda item: item[1].file, work, progress, runner=runner, file="results.jsonl",
            unit="pictures judged", chunk=1,
            settings={
                "seed": self.seed, "data": digest(prompt.line for prompt in self.whole()),
                "detector": self.detector.resolve(), "classifier": self.classifier.resolve(),
            },
        )
        judged = [Judged(prompt, row) for (prompt, _), row in zip(files, rows, strict=True)]
        return judged, f"detector {self.detector.name}, colours {self.classifier.name}; {ORIGINAL}"

    def _read(self, prompts: Sequence[Prompt]) -> list[Judged]:
        """What the file of detections says about these prompts."""
        assert self.detections is not None
        known = Precomputed.read(self.detections, self.whole())
        return [Judged(prompt, row) for prompt in prompts for row in known.rows(prompt)]

    def _score(self, judged: Sequence[Judged]) -> Score:
        """The mean over the tags; pictures of one prompt resemble each other, which their intervals respect."""
        by_tag: dict[str, dict[int, list[bool]]] = {}
        for item in judged:
            by_tag.setdefault(item.prompt.tag, {}).setdefault(item.prompt.index, []).append(item.row["correct"])
        if not by_tag:
            raise UsageError(f"geneval: detections {self.detections}", "no line is about any of these prompts",
                             "its filename must end in NNNNN/samples/NNNN.png, NNNNN the prompt's line from 0")
        groups = {
            tag: [(sum(marks), len(marks)) for marks in by_tag[tag].values()] for tag in TAGS if tag in by_tag
        }
        everything = [group for part in groups.values() for group in part]
        numbers = {
            "pictures right": grouped_proportion(everything),
            "prompts with a right picture": proportion(sum(right > 0 for right, _ in everything), len(everything)),
        }
        score = mean_of_kinds({tag: grouped_proportion(part) for tag, part in groups.items()})
        # What each prompt adds to its tag's share of right pictures.
        grades = [[right * len(part) / sum(n for _, n in part) for right, n in part] for part in groups.values()]
        asked = digest([str(self.seed), *(item.prompt.line for item in judged)])
        columns: dict[str, list[float]] = {
            "pictures": [n for _, n in everything], "right": [right for right, _ in everything],
            "any right": [right > 0 for right, _ in everything],
        }  # fmt: skip
        return with_numbers(with_grades(score, grades, asked), numbers, MADE, columns)


class Judges:
    """Detector and classifier, loaded when the first picture needs them: a resumed run may need neither."""

    def __init__(self, detector: Path, classifier: Path, device: str) -> None:
        self._folders, self._device = (detector, classifier), device

    @cached_property
    def detector(self) -> Any:
        from umcompress.evals.pictures._detectors import Mask2FormerDetector

        return Mask2FormerDetector(self._folders[0], self._device)

    @cached_property
    def colors(self) -> Any:
        from umcompress.evals.pictures._clip import Clip
        from umcompress.evals.pictures._detectors import ClipColors

        return ClipColors(Clip(self._folders[1], self._device))

    def verdict(self, prompt: Prompt, name: str, path: Path) -> Row:
        """The row of one picture: the official program's columns, and all detections with what colours are known."""
        image = open_rgb(path)
        found = self.detector.detect(image)
        colors: dict[int, str] = {}

        def classify(objects: Sequence[Any], label: str) -> list[str]:
            answers: list[str] = self.colors.classify(image, objects, label)
            colors.update(zip(map(id, objects), answers, strict=True))
            return answers

        verdict = judge(prompt.metadata, found, classify=classify)
        return as_row(prompt, name, verdict, [(thing, colors.get(id(thing))) for thing in found])
