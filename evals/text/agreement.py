"""Agreement with the unpruned model on the same text: sensitive where benchmarks of right and wrong see nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveInt

from umcompress.evals._benchmark import digest
from umcompress.evals.text._text import TextBenchmark
from umcompress.extend import (
    KindScore,
    Progress,
    Score,
    Task,
    UsageError,
    atomic_file,
    mean_score,
    proportion,
    with_grades,
)

if TYPE_CHECKING:
    from torch import Tensor

    from umcompress.extend import Runner

FILE = "logits.safetensors"


class Agreement(TextBenchmark):
    """Share of positions at which both models find the same token likeliest; the published number `kl` is the mean
    Kullback-Leibler divergence in nats of this model's next-token distribution from the unpruned one's.

    The unpruned model's logits are kept in the run's folder: tokens x vocabulary x 4 bytes.
    """

    name: ClassVar[str] = "agreement"
    compares: ClassVar[bool] = True
    tokens: PositiveInt = Field(default=1024, description="positions that are compared")
    window: PositiveInt = Field(default=256, description="tokens of context; no window is longer")

    def _rows(self, runner: Runner) -> list[Tensor]:
        ids = self.ids(runner)[: self.tokens]
        return [ids[start : start + self.window] for start in range(0, len(ids), self.window)]

    def run(self, runner: Runner, out: Path, progress: Callable[[str], None]) -> dict[Task, Score]:
        """Keep the logits that later models are compared with; this one agrees with itself."""
        from safetensors.torch import save_file

        started, rows = time.monotonic(), self._rows(runner)
        progress(f"agreement: logits of {sum(map(len, rows))} tokens")
        out.mkdir(parents=True, exist_ok=True)
        kept = {f"{index:05d}": runner.logits(row[None])[0].float().cpu() for index, row in enumerate(rows)}
        with atomic_file(out / FILE) as partial:
            save_file(kept | {f"ids.{index:05d}": row for index, row in enumerate(rows)}, partial)
        same = [[1.0] * len(row) for row in rows]
        return {"understanding": self.timed(_score(same, [0.0] * len(rows), rows), started, None)}

    def compare(
        self, runner: Runner, out: Path, progress: Callable[[str], None], reference: Path
    ) -> dict[Task, Score]:
        """Hold this model's logits against those in `reference`."""
        from safetensors import safe_open

        started, rows = time.monotonic(), self._rows(runner)
        if not (reference / FILE).is_file():
            raise UsageError("agreement", f"there are no logits of the unpruned model in {reference}",
                             "remove the output folder and run again")
        same, divergence = [], []
        shown = Progress("agreement with the unpruned model", "windows", len(rows), 0, progress)
        with safe_open(reference / FILE, framework="pt") as stored, shown:
            for index, row in enumerate(rows):
                if not row.equal(stored.get_tensor(f"ids.{index:05d}")):
                    raise UsageError("agreement", "the text or the tokenizer is another one than the unpruned model's",
                                     "remove the output folder and run again")
                ours = runner.logits(row[None])[0].cpu()
                agreed, nats = compared(stored.get_tensor(f"{index:05d}"), ours)
                same.append(agreed)
                divergence.append(nats)
                shown.advance(1)
        return {"understanding": self.timed(_score(same, divergence, rows), started, None)}


def compared(reference: Tensor, ours: Tensor) -> tuple[list[float], float]:
    """(of each row, whether its likeliest entry is the same; mean KL(reference || ours) in nats), computed in float64.

    reference, ours: (T, V) logits.
    """
    p, q = reference.double().log_softmax(-1), ours.double().log_softmax(-1)
    same = reference.argmax(-1) == ours.argmax(-1)
    return same.double().tolist(), float((p.exp() * (p - q)).sum(-1).mean())


def _score(same: list[list[float]], divergence: list[float], rows: list[Tensor]) -> Score:
    grades = [one for row in same for one in row]
    tokens, right = len(grades), sum(grades)
    weighted = [nats * len(row) * len(rows) / tokens for nats, row in zip(divergence, rows, strict=True)]
    spread = mean_score(weighted)
    value = max(spread.value, 0.0)
    kl = KindScore(value=value, low=min(max(spread.low, 0.0), value), high=max(spread.high, value), n=tokens)
    score = Score(**proportion(right, tokens).model_dump(), numbers={"kl": kl})
    return with_grades(score, [grades], digest(str(row.tolist()) for row in rows))
