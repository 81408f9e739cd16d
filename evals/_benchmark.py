"""The base of published benchmarks: data on the user's disk, results that survive a kill, a progress bar.

A benchmark turns its data into items, works on them in chunks through `Benchmark.collect`, and scores the rows
with a pure function.  `collect` resumes, shows progress, and spreads the chunks over processes.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import Field, NonNegativeInt, PositiveInt

from umcompress.evals._lines import ResumableLines, Row, earlier_seconds, read_rows
from umcompress.extend import Document, Evaluation, Progress, Score, UsageError, processes

if TYPE_CHECKING:
    from umcompress.extend import Runner

T = TypeVar("T")


class Needed(Document):
    """The data that a benchmark reads: which files, where they come from, how large they are, how many items."""

    files: tuple[str, ...]
    origin: str
    size: str
    items: int


class Benchmark(Evaluation):
    """An evaluation on data that the user has on disk."""

    needed: ClassVar[Needed]
    data: Path | None = Field(
        default=None, description="where the data lies; default: data/NAME in the current folder"
    )
    limit: PositiveInt | None = Field(
        default=None, description="at most so many items, drawn evenly over the categories; the score is marked"
    )
    seed: NonNegativeInt = Field(default=0, description="draws the items of a limit, and whatever else is drawn")

    @property
    def folder(self) -> Path:
        """Where the data is."""
        return self.data if self.data is not None else Path("data") / self.name

    def missing(self, paths: Iterable[Path], found: str = "") -> UsageError:
        """The error for missing data."""
        names = [str(path) for path in paths]
        some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        seen = "" if self.folder.is_absolute() else f"; seen from {Path.cwd()}, the current folder"
        need = self.needed
        return UsageError(
            f"{self.name}: the data in {self.folder}",
            (found or f"missing: {some}") + seen,
            f"put {', '.join(need.files)} there ({need.size}), from {need.origin}; or name another place with "
            f"data: ({self.name}:data=PATH on the command line)",
        )

    def require(self, *paths: Path) -> None:
        """UsageError unless all of these exist."""
        if gone := [path for path in paths if not path.exists()]:
            raise self.missing(gone)

    def drawn(
        self, items: Sequence[T], kind: Callable[[T], Hashable], group: Callable[[T], Hashable] | None = None
    ) -> list[T]:
        """All items, or `limit` of them: evenly over the kinds, groups complete, in their order."""
        if self.limit is None or self.limit >= len(items):
            return list(items)
        groups: dict[tuple[Hashable, Hashable], list[int]] = {}
        for index, item in enumerate(items):
            groups.setdefault((kind(item), group(item) if group else index), []).append(index)
        by_kind: dict[Hashable, list[list[int]]] = {}
        for (name, _), members in groups.items():
            by_kind.setdefault(name, []).append(members)
        rng = random.Random(self.seed)
        for lots in by_kind.values():
            rng.shuffle(lots)
        return [items[index] for index in sorted(_even(list(by_kind.values()), self.limit))]

    def partial(self, count: int, total: int | None = None) -> str | None:
        """`120 of 2374` for a score over a part of the items; None for a complete one."""
        whole = self.needed.items if total is None else total
        return None if count >= whole else f"{count} of {whole}"

    def collect(
        self, items: Sequence[T], out: Path, key: Callable[[T], str], work: Callable[[Sequence[T]], list[Row]],
        progress: Callable[[str], None], *, runner: Runner | None = None, file: str = "answers.jsonl",
        unit: str = "questions", chunk: int | None = None, settings: Mapping[str, Any] | None = None,
    ) -> list[Row]:
        """A row for each item, in order: from the file where it is there, else from `work`, a chunk at a time.

        work: items -> their rows, each with its key as `id`.  What is on disk counts only where the runner's
        model and the `settings` are the same.  The chunks do not depend on the number of processes, so neither
        do the rows.
        """
        size = chunk or (None if runner is None else runner.batch_size) or 1
        keys = [key(item) for item in items]
        if len(set(keys)) < len(keys):
            raise UsageError(f"{self.name}: the data in {self.folder}", "two items have the same id", "mend the data")
        known = {"evaluation": self.name, "model": model_digest(runner), **(settings or {})}
        lines = ResumableLines(out / file, known)
        if lines.set_aside:
            progress(f"{self.name}: {out / file} was of another model or other data; kept as {file}.old")
        chunks = processes.share([range(start, min(start + size, len(items))) for start in range(0, len(items), size)])
        mine = [[index for index in part if keys[index] not in lines] for part in chunks]
        total, open_ = sum(map(len, chunks)), sum(map(len, mine))
        with Progress(self.name, unit, total, total - open_, progress) as shown:
            for part in mine:
                if part:
                    lines.append(*work([items[index] for index in part]))
                    shown.advance(len(part))
        return lines.finish(keys)

    def timed(self, score: Score, started: float, partial: str | None, out: Path | None = None) -> Score:
        """The score with its mark and its seconds: since `started` (time.monotonic), and those of earlier runs that
        left rows in `out`."""
        seconds = time.monotonic() - started
        if out is not None:
            seconds += earlier_seconds(out, time.time() - seconds)
        return score.model_copy(update={"partial": partial, "seconds": seconds})


def _even(kinds: list[list[list[int]]], limit: int) -> list[int]:
    """Group after group, one kind at a time, as long as whole groups fit into the limit."""
    chosen: list[int] = []
    for turn in range(max(map(len, kinds))):
        for lots in kinds:
            if turn < len(lots) and len(chosen) + len(lots[turn]) <= limit:
                chosen += lots[turn]
    return chosen


def digest(parts: Iterable[str]) -> str:
    """Identifies a list of texts."""
    found = hashlib.sha256()
    for part in parts:
        found.update(f"{len(part)}:{part}".encode())
    return found.hexdigest()[:16]


def model_digest(runner: Runner | None) -> str | None:
    """Identifies a runner's model: names, shapes and sampled values of its weights.  None if it shows none."""
    if runner is None:
        return None
    model = runner.model
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().reshape(-1)
        found.update(str(flat[:: max(1, len(flat) // 256)][:257].float().cpu().tolist()).encode())
    return found.hexdigest()[:16]


__all__ = [
    "Benchmark", "Needed", "ResumableLines", "Row", "digest", "earlier_seconds", "model_digest",
    "read_rows",
]  # fmt: skip
