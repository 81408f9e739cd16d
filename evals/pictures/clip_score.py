"""CLIP score: the cosine similarity of picture and prompt under CLIP (Hessel et al., 2021)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from umcompress.evals._benchmark import Benchmark, Needed, Row, digest
from umcompress.evals.pictures._pictures import Wanted, device_of, open_rgb, paint
from umcompress.evals.pictures._prompts import read_prompts
from umcompress.extend import KindScore, Made, Score, ScoredItem, Task, UsageError, mean_score

if TYPE_CHECKING:
    from umcompress.evals.pictures._clip import Clip
    from umcompress.extend import Runner

HESSEL = 2.5


class ClipScore(Benchmark):
    """The cosine of picture and prompt in CLIP's space, negative ones as 0; the mean over the prompts.

    Comparable only between scores with the same CLIP and the same prompts.
    """

    name: ClassVar[str] = "clip_score"
    tasks: ClassVar[tuple[Task, ...]] = ("generation",)
    needed: ClassVar[Needed] = Needed(
        files=("prompts.txt",), origin="prompts of your choice, one a line (or JSON lines with `prompt`)",
        size="any size", items=1,
    )
    clip: Path | None = Field(
        default=None, description="folder of a transformers CLIP, such as openai/clip-vit-base-patch16; needed"
    )

    def whole(self) -> list[str]:
        """All prompts of the data."""
        path = self.folder if self.folder.is_file() else self.folder / self.needed.files[0]
        self.require(path)
        return read_prompts(path, "the prompts of clip_score")

    def scored_items(self, task: Task) -> list[ScoredItem]:
        return [ScoredItem(prompt) for prompt in self.whole()] if task == "generation" else []

    def check(self) -> None:
        from umcompress.evals.pictures._clip import check_folder

        self.whole()
        if self.clip is None:
            raise UsageError("clip_score", "no `clip` is named", "clip: FOLDER of openai/clip-vit-base-patch16, say")
        check_folder(self.clip, "clip", f"clip_score: clip {self.clip}")

    def run(self, runner: Runner, out: Path, progress: Callable[[str], None]) -> dict[Task, Score]:
        """Pictures and their scores go to `out`."""
        started = time.monotonic()
        self.check()
        if "generation" not in runner.tasks:
            return {}
        whole = self.whole()
        wanted = [Wanted(f"{index:05d}.png", prompt, index) for index, prompt in enumerate(whole)]
        wanted = self.drawn(wanted, lambda item: "")
        mark = digest(whole)
        paint(self, runner, wanted, out, progress, mark)
        rows = self._compare(runner, wanted, out, progress, mark)
        found = mean_score([row["cosine"] for row in rows])
        if cut := sum(row["cut"] for row in rows):
            progress(f"clip_score: CLIP reads only the beginning of {cut} of {len(rows)} prompts")
        numbers = {"x 100": _times(found, 100), "x 2.5 (Hessel)": _times(found, HESSEL)}
        made = {"x 100": Made(scale=100), "x 2.5 (Hessel)": Made(scale=HESSEL)}
        score = Score(
            **found.model_dump(), numbers=numbers, made=made, variant=f"CLIP {self.clip.name}" if self.clip else None,
            items=tuple(row["cosine"] for row in rows), items_of=digest([mark, *(item.file for item in wanted)]),
        )  # fmt: skip
        return {"generation": self.timed(score, started, self.partial(len(rows), len(whole)), out)}

    def _compare(
        self, runner: Runner, wanted: Sequence[Wanted], out: Path, progress: Callable[[str], None], mark: str
    ) -> list[Row]:
        """A row a picture: its cosine, and whether CLIP could read the whole prompt."""
        assert self.clip is not None
        loaded: list[Clip] = []  # when the first picture needs it: a resumed run may need none

        def work(part: Sequence[Wanted]) -> list[Row]:
            from umcompress.evals.pictures._clip import Clip

            if not loaded and self.clip is not None:
                loaded.append(Clip(self.clip, device_of(runner)))
            clip = loaded[0]
            seen = clip.images([open_rgb(out / "images" / item.file) for item in part])
            meant = clip.texts([item.prompt for item in part])
            cosines = (seen * meant).sum(-1).clamp(min=0).tolist()
            return [
                {"id": item.file, "prompt": item.prompt, "cosine": cosine, "cut": clip.is_cut(item.prompt)}
                for item, cosine in zip(part, cosines, strict=True)
            ]

        settings = {"seed": self.seed, "data": mark, "clip": self.clip.resolve()}
        return self.collect(
            wanted, out, lambda item: item.file, work, progress, runner=runner, file="scores.jsonl",
            unit="pictures compared", chunk=16, settings=settings,
        )


def _times(score: KindScore, factor: float) -> KindScore:
    return KindScore(value=score.value * factor, low=score.low * factor, high=score.high * factor, n=score.n)
