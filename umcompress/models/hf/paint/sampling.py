"""Pictures as tokens, one after the other, guided away from what is painted without the prompt.

B pictures, V codes, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, TopKLogitsWarper, TopPLogitsWarper

from umcompress.models.hf.paint.incremental_forward import IncrementalForward
from umcompress.models.hf.paint.picture_codes import PictureCodes

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Sampling:
    """How codes are drawn. guidance: 1 is none. top_k, top_p: 0 and 1 keep all."""

    guidance: float
    sample: bool = True
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def of(self, config: GenerationConfig | None) -> Sampling:
        """With what a folder's generation settings say instead."""
        names = {"guidance": "guidance_scale", "sample": "do_sample"}
        names |= {name: name for name in ("temperature", "top_k", "top_p")}
        given = {name: getattr(config, theirs, None) for name, theirs in names.items()}
        return replace(self, **{name: value for name, value in given.items() if value is not None})


def generator_of(seed: int, place: int) -> torch.Generator:
    """All random numbers of one picture: they follow from `seed` and its place alone."""
    return torch.Generator().manual_seed((seed * 1_000_003 + place) % 2**63)


def guided(with_prompt: Tensor, without: Tensor | None, scale: float) -> Tensor:
    """Logits (B, V) of both branches to those that are drawn from."""
    return with_prompt if without is None else without + scale * (with_prompt - without)


def draw(logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """(B, V) -> (B,) codes.

    By Gumbel noise, one number a code: models that hardly differ draw the same codes from the same noise.
    """
    scores = logits.float()
    if not sampling.sample:
        return scores.argmax(-1)
    nothing: Any = None
    scores = scores / sampling.temperature
    if sampling.top_k:
        scores = TopKLogitsWarper(min(sampling.top_k, scores.shape[-1]))(nothing, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(nothing, scores)
    waits = torch.stack([torch.empty(scores.shape[-1]).exponential_(generator=one) for one in generators])
    noise = -waits.clamp(min=torch.finfo(torch.float32).tiny).log()
    return (scores + noise.to(scores.device)).argmax(-1)


@torch.no_grad()
def paint(
    pictures: PictureCodes, prompts: Rows, without: Rows, sampling: Sampling, generators: Sequence[torch.Generator], *,
    grid: tuple[int, int] | None = None, steps: int | None = None, padded: bool = False,
    at_time: Callable[[float], None] | None = None, watch: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Token ids of the prompts, and of what stands in their place without them -> codes (B, h * w).

    steps: only so many, the rest stays 0. at_time hears the share that is still to paint; watch, the guided logits.
    """
    height, width = grid or pictures.grid
    total, count = height * width, len(prompts)
    branches = 2 if sampling.guidance != 1 else 1
    codes = torch.zeros(count, total, dtype=torch.long, device=pictures.device)
    forward: IncrementalForward | None = None
    for step in range(min(total, steps or total)):
        if at_time is not None:
            at_time(1 - step / total)
        if forward is None:
            rows = [*prompts, *without][: branches * count]
            forward = IncrementalForward(pictures.language_model, pictures.embed, rows, padded)
        else:
            more = pictures.embed_codes(codes[:, step - 1], ends_row=step % width == 0)
            forward.add(more.repeat(branches, 1, 1))
        logits = pictures.code_logits(forward.hidden)
        # Guidance multiplies what bfloat16 rounds off.
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        logits = guided(logits[:count], logits[count:] if branches == 2 else None, sampling.guidance)
        if watch is not None:
            watch(logits)
        codes[:, step] = draw(logits, sampling, generators)
    return codes
