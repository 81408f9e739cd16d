"""Generate pictures for prompts into files: in chunks, resumable, over several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from umcompress.evals._benchmark import Benchmark, Row
from umcompress.extend import UsageError, atomic_file, open_picture, processes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from umcompress.extend import Runner

LIST = "pictures.jsonl"
SHOWN, SIDE = 12, 256


@dataclass(frozen=True)
class Wanted:
    """A picture to generate.  `place` in the whole set gives its noise, so that a part is painted like the whole."""

    file: str
    prompt: str
    place: int


def paint(
    benchmark: Benchmark, runner: Runner, wanted: Sequence[Wanted], out: Path, progress: Callable[[str], None],
    data: str,
) -> None:
    """Generate missing pictures into `out/images`; every process returns when all pictures exist.

    data: identifies the whole set; pictures of another set, seed or model are painted anew.
    """
    folder = out / "images"

    def work(part: Sequence[Wanted]) -> list[Row]:
        pictures = runner.generate(
            [item.prompt for item in part], benchmark.seed, places=[item.place for item in part]
        )
        for item, picture in zip(part, pictures, strict=True):
            save(folder / item.file, picture)
        return [{"id": item.file, "prompt": item.prompt} for item in part]

    settings = {"seed": benchmark.seed, "data": data, "sampling": sampling(runner)}
    benchmark.collect(
        wanted, out, lambda item: item.file, work, progress, runner=runner, file=LIST, unit="pictures",
        settings=settings,
    )
    if gone := [item.file for item in wanted if not (folder / item.file).is_file()]:
        found = f"{len(gone)} of them are gone: {', '.join(gone[:3])}"
        raise UsageError(f"the pictures in {folder}", found, f"remove {out / LIST} to paint anew")
    if processes.rank() == 0:
        some = wanted[:: _every(len(wanted))]
        sample_sheet(out / "samples.png", [(folder / item.file, item.prompt) for item in some])


def sampling(runner: Runner) -> str:
    """The settings that a runner samples with, as far as it shows any."""
    return runner.sampling_settings


def _every(count: int) -> int:
    return max(1, count // SHOWN)


def save(path: Path, picture: NDArray[np.uint8] | Image) -> None:
    """Write a PNG atomically."""
    from PIL import Image as Pillow

    image = picture if isinstance(picture, Pillow.Image) else Pillow.fromarray(picture)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, str(processes.rank())) as partial:
        image.save(partial, format="PNG")


def open_rgb(path: Path) -> Image:
    """A picture in RGB.  UsageError where there is none."""
    do = "remove it and its line in the list to have it painted again"
    return open_picture(path, f"the picture {path}", do)


def _small(path: Path, side: int = SIDE) -> NDArray[np.uint8]:
    import numpy as np

    image = open_rgb(path)
    image.thumbnail((side, side))
    return np.asarray(image)


def sample_sheet(path: Path, shown: Sequence[tuple[Path, str]]) -> None:
    """Some pictures with their prompts."""
    from umcompress.evals.scenes.pictures import save_contact_sheet

    pictures = [_small(file) for file, _ in shown[:SHOWN]]
    scale = max(1, 144 // max(picture.shape[1] for picture in pictures))
    save_contact_sheet(path, pictures, [prompt for _, prompt in shown[:SHOWN]], scale=scale)


def picture_grid(path: Path, files: Iterable[Path], columns: int = 2) -> None:
    """The pictures of one prompt side by side."""
    from PIL import Image as Pillow

    pictures = [Pillow.fromarray(_small(file)) for file in files]
    width, height = max(p.width for p in pictures) + 2, max(p.height for p in pictures) + 2
    rows = -(-len(pictures) // columns)
    whole = Pillow.new("RGB", (min(columns, len(pictures)) * width + 2, rows * height + 2))
    for index, picture in enumerate(pictures):
        whole.paste(picture, (index % columns * width + 2, index // columns * height + 2))
    save(path, whole)


def device_of(runner: Runner) -> str:
    """Where a runner's model is; judges go to the same place."""
    return str(runner.device)
