"""The packed training forward.  Items of a sample are texts, vision images and latent images, in order.

N tokens of the longest sample, B samples, D values of a latent token, C latent channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from umcompress.models.bagel.context import Context
from umcompress.models.bagel.model import GEN, UND, Bagel

Mode = Literal["causal", "full", "noise"]


@dataclass(frozen=True)
class TextItem:
    """Token ids without bos and eos; with `loss`, inputs bos..last predict ids..eos."""

    ids: Tensor
    loss: bool = False


@dataclass(frozen=True)
class VisionItem:
    """An image (3, h, w) for the vision tower."""

    image: Tensor


@dataclass(frozen=True)
class LatentItem:
    """A latent (C, h*p, w*p).  With `loss` it is noised with `noise` (tokens, D) at sigmoid(`raw_time`)."""

    latent: Tensor
    loss: bool = False
    raw_time: float = float("-inf")
    noise: Tensor | None = None


Item = TextItem | VisionItem | LatentItem
Sample = Sequence[Item]


@dataclass(frozen=True)
class TrainingOutput:
    """`ce` (tokens,) and `mse` (rows, D) unreduced, from `logits` (tokens, V) and `velocity` (rows, D)."""

    ce: Tensor
    mse: Tensor
    logits: Tensor
    velocity: Tensor

    def loss(self, ce_weight: float = 1.0, mse_weight: float = 1.0) -> Tensor:
        """`ce_weight * mean(ce) + mse_weight * mean over rows of the channel mean`."""
        total = self.mse.new_zeros(())
        if self.ce.numel():
            total = total + ce_weight * self.ce.mean()
        if self.mse.numel():
            total = total + mse_weight * self.mse.mean()
        return total


@lru_cache(maxsize=4096)
def split_mask(lengths: tuple[int, ...], modes: tuple[Mode, ...]) -> Tensor:
    """(n, n) boolean, true = may attend.

    Everything earlier is visible; a causal split sees itself lower-triangularly, a full or noise split
    wholly; the columns of a noise split are hidden from all other splits.
    """
    split = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    noisy = torch.tensor([mode == "noise" for mode in modes])[split]
    whole = torch.tensor([mode != "causal" for mode in modes])[split]
    order = torch.arange(len(split))
    same = split[:, None] == split[None]
    inside = same & (whole[:, None] | (order[None] <= order[:, None]))
    before = (split[None] < split[:, None]) & ~noisy[None]
    return inside | before


class _Pack:
    """Collects the rows of all samples in packed order."""

    def __init__(self, model: Bagel) -> None:
        self.model = model
        self.text_ids: list[Tensor] = []
        self.und_sources: list[Tensor] = []
        self.images: list[Tensor] = []
        self.latents: list[LatentItem] = []
        self.kinds: list[Tensor] = []
        self.positions: list[Tensor] = []
        self.masks: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.label_rows: list[Tensor] = []
        self.text_count = self.vision_count = self.und_count = 0

    def add_sample(self, sample: Sample) -> None:
        position = 0
        kinds: list[Tensor] = []
        positions: list[Tensor] = []
        lengths: list[int] = []
        modes: list[Mode] = []
        for item in sample:
            if isinstance(item, TextItem):
                count = self._text(item)
                kind = torch.full((count,), UND)
                ids = torch.arange(count) + position
                advance, mode = count, "causal"
            else:
                kind = self._vision(item) if isinstance(item, VisionItem) else self._latent(item)
                ids = torch.full((len(kind),), position)
                noised = isinstance(item, LatentItem) and item.loss
                advance, mode = (0, "noise") if noised else (1, "full")
            kinds.append(kind)
            positions.append(ids)
            lengths.append(len(kind))
            modes.append(mode)  # type: ignore[arg-type]
            position += advance
        self.kinds.append(torch.cat(kinds))
        self.positions.append(torch.cat(positions))
        self.masks.append(split_mask(tuple(lengths), tuple(modes)))

    def _ids(self, ids: Tensor) -> None:
        self.text_ids.append(ids)
        self.und_sources.append(torch.arange(len(ids)) + self.text_count)
        self.text_count += len(ids)
        self.und_count += len(ids)

    def _text(self, item: TextItem) -> int:
        marks = self.model.config.tokens
        ids = item.ids.cpu()
        bos, eos = torch.tensor([marks.bos_token_id]), torch.tensor([marks.eos_token_id])
        if item.loss:
            self.label_rows.append(torch.arange(len(ids) + 1) + self.und_count)
            self.labels.append(torch.cat([ids, eos]))
        self._ids(torch.cat([bos, ids, eos]))
        return len(ids) + 2

    def _vision(self, item: VisionItem) -> Tensor:
        marks, side = self.model.config.tokens, self.model.config.vision.patch_size
        count = (item.image.shape[1] // side) * (item.image.shape[2] // side)
        self._ids(torch.tensor([marks.start_of_image]))
        # Vision rows stand after all text rows in the joint table of sources: negative until it is known.
        self.und_sources.append(-1 - (torch.arange(count) + self.vision_count))
        self.vision_count += count
        self.und_count += count
        self.images.append(item.image)
        self._ids(torch.tensor([marks.end_of_image]))
        return torch.full((count + 2,), UND)

    def _latent(self, item: LatentItem) -> Tensor:
        marks, patch = self.model.config.tokens, self.model.config.latent_patch_size
        count = (item.latent.shape[1] // patch) * (item.latent.shape[2] // patch)
        self._ids(torch.tensor([marks.start_of_image, marks.end_of_image]))
        self.latents.append(item)
        kind = torch.full((count + 2,), GEN)
        kind[0] = kind[-1] = UND
        return kind

    def context(self) -> Context:
        longest = max(len(kind) for kind in self.kinds)
        allowed = torch.zeros(len(self.kinds), longest, longest, dtype=torch.bool)
        for row, mask in zip(allowed, self.masks, strict=True):
            row[: len(mask), : len(mask)] = mask
        context = Context(self.kinds, self.positions, allowed, device=self.model.device)
        context.vision_rows = (torch.cat(self.und_sources) < 0).to(self.model.device)
        return context

    def und_rows(self) -> Tensor:
        text = self.model.embed_text(torch.cat(self.text_ids))
        sources = torch.cat(self.und_sources)
        sources = torch.where(sources < 0, self.text_count - 1 - sources, sources).to(self.model.device)
        if self.images:
            seen, _ = self.model.encode_vision(self.images)
            text = torch.cat([text, seen.to(text.dtype)])
        return text[sources]

    def gen_rows(self, shift: float) -> tuple[Tensor, Tensor, Tensor]:
        """Embedded rows (G, H), targets (G, D), which rows carry a loss (G,)."""
        model, patch = self.model, self.model.config.latent_patch_size
        clean, noise, raw, ids, scored = [], [], [], [], []
        for item in self.latents:
            tokens = model.latent_tokens(item.latent)
            clean.append(tokens)
            noise.append(torch.zeros_like(tokens) if item.noise is None else item.noise.to(tokens))
            raw.append(torch.full((len(tokens),), item.raw_time))
            rows, columns = item.latent.shape[1] // patch, item.latent.shape[2] // patch
            ids.append(model.latent_pos_embed.ids(rows, columns))
            scored.append(torch.full((len(tokens),), item.loss))
        clean_rows, noise_rows = torch.cat(clean).to(model.device), torch.cat(noise).to(model.device)
        t = torch.sigmoid(torch.cat(raw)).to(model.device)
        t = shift * t / (1 + (shift - 1) * t)
        noisy = (1 - t[:, None]) * clean_rows + t[:, None] * noise_rows
        gen = model.embed_latents(noisy, t, torch.cat(ids).to(model.device))
        return gen, noise_rows - clean_rows, torch.cat(scored).to(model.device)


def training_forward(model: Bagel, samples: Sequence[Sample], shift: float | None = None) -> TrainingOutput:
    """Both losses of a pack of samples (cross-entropy on text, flow matching on latents)."""
    pack = _Pack(model)
    for sample in samples:
        pack.add_sample(sample)
    und = pack.und_rows()
    hidden = und.shape[-1]
    if pack.latents:
        gen, target, scored = pack.gen_rows(model.config.timestep_shift if shift is None else shift)
    else:
        gen = und.new_zeros(0, hidden)
    und, gen = model.language_model(und, gen.to(und.dtype), pack.context())
    ce, mse = und.new_zeros(0), und.new_zeros(0)
    logits, velocity = und.new_zeros(0, 0), und.new_zeros(0, 0)
    if pack.labels:
        logits = model.logits(und[torch.cat(pack.label_rows).to(und.device)]).float()
        labels = torch.cat(pack.labels).to(und.device)
        ce = functional.cross_entropy(logits, labels, reduction="none")
    if pack.latents:
        velocity = model.llm2vae(gen[scored]).float()
        mse = (velocity - target[scored]) ** 2
    return TrainingOutput(ce, mse, logits, velocity)
