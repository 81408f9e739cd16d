"""Perplexity of a local text under a causal language model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from umcompress.evals._benchmark import Row, digest
from umcompress.evals.text._text import Windowed, batches
from umcompress.extend import KindScore, Made, Score, Task, UsageError, files, mean_score

if TYPE_CHECKING:
    from torch import Tensor

    from umcompress.extend import Runner


# Nats of which exp() is still a float64; a perplexity beyond is given as that, 8e307.
MOST = 709.0


class Perplexity(Windowed):
    """exp of the mean negative log-likelihood of a token, every token of the text weighted alike.

    The score is its inverse, the geometric mean of the probability that each next token got: 0 to 1, higher is
    better.  The published number `perplexity` is beside it, and `bits_per_byte`, which does not depend on the
    tokenizer.  The windows are the same before and after compression.
    """

    name: ClassVar[str] = "perplexity"
    bos: bool | None = Field(
        default=None,
        description="put the token that begins texts before every window; default: as lm-eval, for Gemma only",
    )

    def suits(self, runner: Runner) -> None:
        super().suits(runner)
        most = runner.max_text_tokens
        if most is not None and self.window + 1 > most and self._before(runner):
            raise UsageError(f"{self.name}: windows of {self.window} tokens behind the one that begins texts",
                             f"the model has positions for {most}", f"set window: {most - 1}, or bos: false")

    def _before(self, runner: Runner) -> list[int]:
        """The token before every window, where there is to be one."""
        model: Any = runner.model
        kind = str(getattr(getattr(model, "config", None), "model_type", ""))
        if not (kind.startswith("gemma") if self.bos is None else self.bos):
            return []
        token = runner.tokenizer.tokenizer.bos_token_id
        if token is None and self.bos:
            raise UsageError(f"{self.name}: bos: true", "the tokenizer has no token that begins texts", "leave bos out")
        return [] if token is None else [int(token)]

    def run(self, runner: Runner, out: Path, progress: Callable[[str], None]) -> dict[Task, Score]:
        started, ids = time.monotonic(), self.ids(runner)
        parts, before = self.windows(len(ids)), self._before(runner)
        rows = self.collect(
            list(batches(parts, self.window)), out, lambda batch: f"{batch[0][0]}-{batch[-1][1]}",
            lambda some: [_likelihood(runner, ids, batch, before) for batch in some], progress, runner=runner,
            file="windows.jsonl", unit="batches of windows", chunk=1,
            settings={
                "window": self.window, "stride": self.stride, "data": digest([files.read_text(self.path())]),
                **({"before": before} if before else {}),
            },
        )
        losses = [loss for row in rows for loss in row["losses"]]
        counts = [count for row in rows for count in row["counts"]]
        # Of the text, not of what the tokenizer gives back: that may be in lower case, or have unknown tokens in it.
        size = len(runner.tokenizer.beginning(self.parts()[1], parts[-1][1]).encode())
        whole = len(self.model_copy(update={"limit": None}).windows(len(ids)))
        read = digest([files.read_text(self.path()), repr(counts), *map(str, before)])
        score = token_weighted(losses, counts, size).model_copy(update={"items_of": read})
        return {"understanding": self.timed(score, started, self.partial(len(losses), whole), out)}


def _likelihood(runner: Runner, ids: Tensor, batch: list[tuple[int, int, int]], before: list[int]) -> Row:
    """Sum of negative log-likelihoods (nats) and number of scored tokens of each window, read behind `before`."""
    import torch

    rows = torch.stack([ids[start:end] for start, end, _ in batch])
    more = torch.tensor([before], dtype=rows.dtype).expand(len(rows), len(before))
    logits = runner.logits(torch.cat([more, rows[:, :-1]], dim=1))[:, len(before) :]
    losses, counts = [], []
    for row, found, (start, _, first) in zip(rows, logits, batch, strict=True):
        skip = first - start - 1
        wanted = row[skip + 1 :].to(found.device)
        # In float32 a window at a time: logits of a whole batch in float32 would be the largest tensor of the run.
        nats = torch.nn.functional.cross_entropy(found[skip:].float(), wanted, reduction="none")
        losses.append(float(nats.double().sum()))
        counts.append(len(wanted))
    return {"id": f"{batch[0][0]}-{batch[-1][1]}", "losses": losses, "counts": counts}


def token_weighted(losses: list[float], counts: list[int], size: int) -> Score:
    """The score of windows with these summed losses (nats) over so many tokens, `size` bytes of text in all.

    The interval is that of a mean over windows (a ratio estimate: windows of more tokens count more).
    """
    tokens = sum(counts)
    nats = sum(losses) / tokens
    # Linearised: each window's deviation from the common mean, weighted by its share of the tokens.
    deviations = [(loss - nats * count) * len(counts) / tokens for loss, count in zip(losses, counts, strict=True)]
    spread = mean_score(deviations)
    half = (spread.high - spread.low) / 2 if len(losses) > 1 else nats

    def number(of: Callable[[float], float]) -> KindScore:
        ends = sorted((of(nats - half), of(nats), of(nats + half)))
        return KindScore(value=of(nats), low=ends[0], high=ends[2], n=tokens)

    per_byte = tokens / size / math.log(2) if size else 0.0
    likely = number(lambda value: _exp(-value))
    numbers = {"perplexity": number(_exp), "bits_per_byte": number(lambda value: value * per_byte)}
    # What each window contributes, so that two scores of the same windows are compared window by window.
    items = tuple(nats + deviation for deviation in deviations)
    made = {"bits_per_byte": Made(scale=per_byte)}
    return Score(
        **likely.model_dump(), numbers=numbers, made=made, items=items, items_are="nats", printed="perplexity"
    )


def _exp(value: float) -> float:
    return math.exp(min(value, MOST))
