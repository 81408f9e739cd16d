"""Fidelity: the distance of each picture to the unpruned model's, from the same prompt and noise.

Cheap, as it needs no judge, and sensitive: it sees changes long before a benchmark of right and wrong does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from umcompress.evals._benchmark import Benchmark, Needed, Row, digest
from umcompress.evals.pictures._pictures import Wanted, open_rgb, paint
from umcompress.evals.pictures._prompts import read_prompts
from umcompress.extend import KindScore, Score, ScoredItem, Task, UsageError, files, mean_score

if TYPE_CHECKING:
    from PIL.Image import Image

    from umcompress.extend import Runner

KINDS = ("pixels", "latents")


class Fidelity(Benchmark):
    """Likeness to the unpruned model's pictures: 1 is the same picture.  In pixels, and in latents by kind.

    pixels: 1 - the root mean square difference, 0 to 1.  latents: 1 - the distance relative to the length of the
    unpruned picture's latent.  Chance is what the unpruned picture of another prompt gets.
    """

    name: ClassVar[str] = "fidelity"
    tasks: ClassVar[tuple[Task, ...]] = ("generation",)
    compares: ClassVar[bool] = True
    needed: ClassVar[Needed] = Needed(
        files=("prompts.txt",), origin="prompts of your choice, one a line (or JSON lines with `prompt`)",
        size="any size", items=1,
    )
    reference: str | None = Field(
        default=None, description="the unpruned model; default: in a recipe, the model before its first step"
    )

    def whole(self) -> list[str]:
        """All prompts of the data."""
        path = self.folder if self.folder.is_file() else self.folder / self.needed.files[0]
        self.require(path)
        return read_prompts(path, "the prompts of fidelity")

    def scored_items(self, task: Task) -> list[ScoredItem]:
        return [ScoredItem(prompt) for prompt in self.whole()] if task == "generation" else []

    def check(self) -> None:
        self.whole()

    def _wanted(self, whole: Sequence[str]) -> list[Wanted]:
        wanted = [Wanted(f"{index:05d}.png", prompt, index) for index, prompt in enumerate(whole)]
        return self.drawn(wanted, lambda item: "")

    def run(self, runner: Runner, out: Path, progress: Callable[[str], None]) -> dict[Task, Score]:
        """The pictures that others are compared with; they are like themselves."""
        if "generation" not in runner.tasks:
            return {}
        started, whole = time.monotonic(), self.whole()
        wanted = self._wanted(whole)
        paint(self, runner, wanted, out, progress, digest(whole))
        same = KindScore(value=1.0, low=1.0, high=1.0, n=len(wanted))
        kinds = KINDS if runner.encodes_pictures else KINDS[:1]
        items = (1.0,) * len(wanted)
        score = Score(**same.model_dump(), by_kind=dict.fromkeys(kinds, same), items=items, items_of=_items_of(wanted))
        return {"generation": self.timed(score, started, self.partial(len(wanted), len(whole)), out)}

    def compare(
        self, runner: Runner, out: Path, progress: Callable[[str], None], reference: Path
    ) -> dict[Task, Score]:
        """Paint, and compare with the pictures in `reference`."""
        if "generation" not in runner.tasks:
            return {}
        started, whole = time.monotonic(), self.whole()
        wanted, mark = self._wanted(whole), digest(whole)
        paint(self, runner, wanted, out, progress, mark)
        followers = [*wanted[1:], wanted[0]]
        pairs = list(zip(wanted, followers, strict=True))

        def work(part: Sequence[tuple[Wanted, Wanted]]) -> list[Row]:
            return [
                {"id": item.file, "prompt": item.prompt, **distances(
                    runner, *(open_rgb(folder / "images" / one.file)
                              for folder, one in ((out, item), (reference, item), (reference, other)))
                )}
                for item, other in part
            ]

        rows = self.collect(
            pairs, out, lambda pair: pair[0].file, work, progress, runner=runner, file="distances.jsonl",
            unit="pictures compared", chunk=4,
            settings={"seed": self.seed, "data": mark, "reference": _mark(reference)},
        )
        score = _score(rows).model_copy(update={"items_of": _items_of(wanted)})
        return {"generation": self.timed(score, started, self.partial(len(rows), len(whole)), out)}


def _mark(reference: Path) -> str:
    """Identifies the pictures of the reference: its model, its seed."""
    file = reference / "pictures.settings.json"
    if not file.is_file():
        raise UsageError("fidelity", f"there are no pictures of the unpruned model in {reference}",
                         "remove the output folder and run again")
    return digest([files.read_text(file)])


def distances(runner: Runner, picture: Image, reference: Image, other: Image) -> dict[str, float]:
    """How far a picture is from its reference, and how far the reference of another prompt is from that."""
    import numpy as np

    if len({picture.size, reference.size, other.size}) > 1:
        raise UsageError("fidelity", f"a picture of {picture.size} and a reference of {reference.size}",
                         "compare models that paint in the same size")
    a, b, c = (np.asarray(image, dtype=np.float64) / 255 for image in (picture, reference, other))
    found = {"pixels": float(np.sqrt(((a - b) ** 2).mean())), "pixels_other": float(np.sqrt(((c - b) ** 2).mean()))}
    if runner.encodes_pictures:
        import torch

        with torch.no_grad():
            x, y, z = (latent.double() for latent in runner.latents([picture, reference, other]))
        length = float(y.norm()) or 1.0
        found |= {"latents": float((x - y).norm()) / length, "latents_other": float((z - y).norm()) / length}
    return found


def _items_of(wanted: Sequence[Wanted]) -> str:
    return digest(f"{item.file} {item.prompt}" for item in wanted)


def _score(rows: Sequence[Row]) -> Score:
    kinds = {}
    for kind in KINDS:
        if kind in rows[0]:
            level = 1 - sum(row[f"{kind}_other"] for row in rows) / len(rows) if len(rows) > 1 else None
            kinds[kind] = mean_score([1 - row[kind] for row in rows]).model_copy(update={"chance": level})
    return Score(**kinds["pixels"].model_dump(), by_kind=kinds, items=tuple(1 - row["pixels"] for row in rows))
