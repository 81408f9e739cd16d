"""A local text for language models: one part is scored, the other calibrates and trains.

T tokens of a window, V vocabulary, N windows.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, PositiveInt, model_validator

from umcompress.evals._benchmark import Benchmark, Needed
from umcompress.extend import PlanError, Task, UsageError, did_you_mean, files

if TYPE_CHECKING:
    from torch import Tensor

    from umcompress.extend import Runner, TextSample

BATCH_TOKENS = 4096
# Characters of a text that is worth a score.
_FEWEST = 10


class TextBenchmark(Benchmark):
    """An evaluation on a plain text file."""

    tasks: ClassVar[tuple[Task, ...]] = ("understanding",)
    needed: ClassVar[Needed] = Needed(
        files=("text.txt",), origin="any plain text (UTF-8), such as a test split of WikiText", size="any size", items=1
    )
    held_out: float = Field(
        default=0.2, ge=0, lt=1,
        description="share of the text, its beginning, that is never scored: calibration and training draw from it",
    )
    window: PositiveInt = Field(default=512, description="tokens of context; no window is longer")
    sample_characters: PositiveInt = Field(
        default=2000, description="length of a text that calibration and training get, before it is cut into tokens"
    )

    def path(self) -> Path:
        """The text file: `data` itself, or `text.txt` in it."""
        return self.folder / self.needed.files[0] if self.folder.is_dir() else self.folder

    def missing(self, paths: Iterable[Path], found: str = "") -> UsageError:
        """As of other benchmarks, unless a file was named and not a folder: that one is what is to be there."""
        named = self.data
        if named is None or named.is_dir() or not named.suffix:
            return super().missing(paths, found)
        seen = "" if named.is_absolute() else f"; seen from {Path.cwd()}, the current folder"
        near = sorted(path.name for path in named.parent.glob(f"*{named.suffix}")) if named.parent.is_dir() else []
        do = f"{hint}; or " if (hint := did_you_mean(named.name, near)) else ""
        return UsageError(f"{self.name}: the text {named}", (found or "no such file") + seen,
                          f"{do}name a text file (UTF-8) that is there, or a folder with {self.needed.files[0]} in it")

    def check(self) -> None:
        self.require(self.path())
        if len(self.parts()[1].strip()) < _FEWEST:
            raise UsageError(f"{self.name}: score {self.path()}", "hardly any text", "give it a longer text")

    def parts(self) -> tuple[str, str]:
        """(held out, scored), cut at a line's end, between words where no line ends, or where there is neither."""
        self.require(self.path())
        try:
            text = files.read_text(self.path())
        except UnicodeDecodeError as error:
            found = f"it is no UTF-8 text: {error}"
            raise UsageError(f"{self.name}: read {self.path()}", found, "convert it") from error
        except OSError as error:
            raise UsageError(f"{self.name}: read {self.path()}", str(error.strerror), "check the file") from error
        share = int(len(text) * self.held_out)
        place = text.find("\n", share) + 1 or text.find(" ", share) + 1 or share if self.held_out else 0
        return text[:place], text[place:]

    def suits(self, runner: Runner) -> None:
        """UsageError where the model has no logits of plain text, no tokenizer, or no positions for the windows."""
        # The tokenizer is opened where it is asked for.
        if not runner.reads_texts:
            raise UsageError(f"{self.name} of this model", "it has no logits of plain text",
                             "use it on causal language models")
        if not runner.generates_text:
            kind = type(runner.model).__name__
            raise UsageError(f"{self.name} of this model", f"{kind} does not generate text",
                             "use it on causal language models")
        most = runner.max_text_tokens
        if most is not None and self.window > most:
            raise UsageError(f"{self.name}: windows of {self.window} tokens", f"the model has positions for {most}",
                             f"set window: {most}, or less")

    def ids(self, runner: Runner) -> Tensor:
        """The scored text as one row of ids, tokenized as a whole and without special tokens."""
        self.suits(runner)
        import torch

        found = torch.tensor(runner.tokenizer.continuation_ids(self.parts()[1]), dtype=torch.long)
        if len(found) < 2:
            raise UsageError(f"{self.name}: score {self.path()}", "fewer than two tokens", "give it a longer text")
        return found

    def calibration_items(self, task: Task, samples: int, seed: int) -> list[Any]:
        return self._drawn(task, samples, seed, "calibrate")

    def training_items(self, task: Task, count: int, seed: int) -> list[Any]:
        return self._drawn(task, count, seed, "train")

    def _drawn(self, task: Task, count: int, seed: int, what: str) -> list[TextSample]:
        from umcompress.extend import TextSample

        text, length = self.parts()[0], self.sample_characters
        if task != "understanding":
            raise PlanError(f"{what} on {task}", f"{self.name} has text only", "set task: understanding")
        if len(text) < length:
            raise PlanError(
                f"{what} on {self.path()}", f"{len(text)} characters are held out, a sample has {length}",
                "give a longer text, a larger held_out, or smaller sample_characters",
            )  # fmt: skip
        rng = random.Random(f"{seed}/{self.name}")
        starts = [rng.randrange(len(text) - length + 1) for _ in range(count)]
        return [TextSample(text[start : start + length]) for start in starts]


def windows(tokens: int, window: int, stride: int) -> list[tuple[int, int, int]]:
    """(start, end, first scored) of windows that score every token but the first once.

    The model reads tokens start to end - 2, at most `window`, and is scored on the ones after each. A window after
    the first scores its last `stride` tokens with the others as context.
    """
    found: list[tuple[int, int, int]] = []
    scored = 1
    while scored < tokens:
        end = min(tokens, scored + (stride if found else window))
        found.append((max(0, end - 1 - window), end, scored))
        scored = end
    return found


def batches(parts: Sequence[tuple[int, int, int]], window: int) -> Iterator[list[tuple[int, int, int]]]:
    """Windows of one length together, in their order."""
    size = max(1, BATCH_TOKENS // window)
    batch: list[tuple[int, int, int]] = []
    for part in parts:
        if batch and (len(batch) == size or batch[0][1] - batch[0][0] != part[1] - part[0]):
            yield batch
            batch = []
        batch.append(part)
    if batch:
        yield batch


class Windowed(TextBenchmark):
    """What scores windows of a text with a stride."""

    stride: PositiveInt | None = Field(
        default=None, description="tokens that each window scores, the others are context; default: the whole window"
    )

    @model_validator(mode="after")
    def _stride_fits(self) -> Windowed:
        if self.stride is not None and self.stride > self.window:
            raise ValueError(f"stride ({self.stride}) is larger than the window ({self.window})")
        return self

    def windows(self, tokens: int) -> list[tuple[int, int, int]]:
        """The windows that are scored: the first `limit` of them, the same for every model of a tokenizer."""
        found = windows(tokens, self.window, self.stride or self.window)
        return found if self.limit is None else found[: self.limit]
