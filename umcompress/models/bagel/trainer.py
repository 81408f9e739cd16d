"""BAGEL in training: items into packed samples, and the packed forward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from umcompress.documents.base import Task
from umcompress.errors import ModelError
from umcompress.models.bagel.model import Bagel
from umcompress.models.bagel.preprocess import normalise, resize, vision_input
from umcompress.models.bagel.tokenizer import FolderTokenizer
from umcompress.models.bagel.training import Item, LatentItem, Sample, TextItem, VisionItem, training_forward
from umcompress.models.items import ImageText, TrainingItem, UnderstandingItem
from umcompress.models.pictures import to_image
from umcompress.models.trainer import TrainingBatch, TrainingForward

# Share of prompts that are left out, so that the model also learns the unguided branch.
TEXT_DROPOUT = 0.1


class BagelTrainer:
    """Generation: prompt, then the picture's noised latent.  Understanding: picture, question, answer."""

    tasks: tuple[Task, ...] = ("understanding", "generation")

    def __init__(self, model: Bagel, folder: Path) -> None:
        self.model, self.folder = model, folder

    @cached_property
    def tokenizer(self) -> FolderTokenizer:
        return FolderTokenizer(self.folder)

    def check(self, items: Sequence[TrainingItem]) -> None:
        for item in items:
            if not isinstance(item, ImageText | UnderstandingItem):
                raise _wrong_item(item)

    def blocked(self, name: str, items: Sequence[TrainingItem]) -> str:
        return ""

    def batch(self, items: Sequence[TrainingItem], draws: Sequence[np.random.Generator]) -> TrainingBatch:
        """Samples in the order of the items; pictures of one size go through the autoencoder together."""
        painted = [item for item in items if isinstance(item, ImageText)]
        latents = iter(self._latents([item.image for item in painted]))
        samples: list[Sample] = []
        for item, draw in zip(items, draws, strict=True):
            if isinstance(item, ImageText):
                samples.append(self._generation(item, next(latents), draw))
            elif isinstance(item, UnderstandingItem):
                samples.append(self._understanding(item))
            else:
                raise _wrong_item(item)
        und, gen, labels = _rows(samples, self.model)
        rows = {"flow": gen, "velocity": gen, "cross_entropy": labels, "logits": labels}
        return TrainingBatch(samples, {name: count for name, count in rows.items() if count}, (und, gen))

    def forward(self, batch: TrainingBatch) -> TrainingForward:
        # Times as the sampler's steps are spread, not as those of the first training: what it visits must hold.
        out = training_forward(self.model, batch.data, self.model.config.sampling.timestep_shift)
        losses, outputs = {}, {}
        if "flow" in batch.rows:
            losses["flow"], outputs["velocity"] = out.mse.mean(-1), out.velocity
        if "cross_entropy" in batch.rows:
            losses["cross_entropy"], outputs["logits"] = out.ce, out.logits
        return TrainingForward(losses, outputs)

    @torch.no_grad()
    def losses(
        self, items: Sequence[TrainingItem], draws: Sequence[np.random.Generator], times: Sequence[float]
    ) -> Tensor:
        """Flow-matching error of pictures, a column a time; cross-entropy of answers with their end."""
        painted = [item for item in items if isinstance(item, ImageText)]
        if not painted:
            asked = [item for item in items if isinstance(item, UnderstandingItem)]
            out = training_forward(self.model, [self._understanding(item) for item in asked])
            return _means(out.ce, [len(self.tokenizer.ids(item.answer)) + 1 for item in asked])
        latents = self._latents([item.image for item in painted])
        noises = [_noise(self.model.latent_tokens(one), draw) for one, draw in zip(latents, draws, strict=True)]
        texts = [TextItem(self.tokenizer.ids(item.prompt)) for item in painted]
        shift, columns = self.model.config.sampling.timestep_shift, []
        for time in times:
            # Training takes a time as what a sigmoid makes it of.
            raw = math.log(time / (1 - time))
            ready = [LatentItem(*each) for each in zip(latents, repeat(True), repeat(raw), noises, strict=False)]
            out = training_forward(self.model, list(zip(texts, ready, strict=True)), shift)
            columns.append(_means(out.mse.mean(-1), [len(noise) for noise in noises]))
        return torch.cat(columns, dim=1)

    def _understanding(self, item: UnderstandingItem) -> Sample:
        picture = VisionItem(vision_input(item.image, self.model.config))
        question, answer = self.tokenizer.ids(item.question), self.tokenizer.ids(item.answer)
        return [picture, TextItem(question), TextItem(answer, loss=True)]

    def _generation(self, item: ImageText, latent: Tensor, draw: np.random.Generator) -> Sample:
        # The order of the draws is part of what a seed means.
        dropped, raw = draw.random() < TEXT_DROPOUT, float(draw.standard_normal())
        noise = _noise(self.model.latent_tokens(latent), draw)
        text: list[Item] = [] if dropped else [TextItem(self.tokenizer.ids(item.prompt))]
        return [*text, LatentItem(latent, True, raw, noise)]

    @torch.no_grad()
    def _latents(self, images: Sequence[object]) -> list[Tensor]:
        """(C, h*p, w*p) float32 each."""
        vae = self.model.vae
        dtype, device = vae.encoder.conv_in.weight.dtype, self.model.device
        pixels = [normalise(resize(to_image(image), self.model.config.vae_rule)) for image in images]
        latents: list[Tensor] = [torch.empty(0)] * len(pixels)
        for shape in sorted({image.shape for image in pixels}):
            same = [index for index, image in enumerate(pixels) if image.shape == shape]
            stacked = torch.stack([pixels[index] for index in same]).to(device, dtype)
            for index, latent in zip(same, vae.encode(stacked).float(), strict=True):
                latents[index] = latent
        return latents


def _noise(tokens: Tensor, draw: np.random.Generator) -> Tensor:
    return torch.from_numpy(draw.standard_normal(tuple(tokens.shape), dtype=np.float32))


def _means(losses: Tensor, counts: Sequence[int]) -> Tensor:
    """(rows,) -> (items, 1) float64: the mean over the rows of each item."""
    return torch.stack([part.double().mean() for part in torch.split(losses, list(counts))])[:, None]


def _wrong_item(item: TrainingItem) -> ModelError:
    return ModelError(
        "train a BAGEL model", f"an item of kind {type(item).__name__}",
        "give it pictures with prompts (ImageText), or with questions and answers (UnderstandingItem)",
    )  # fmt: skip


def _rows(samples: Sequence[Sample], model: Bagel) -> tuple[int, int, int]:
    """Understanding rows, generation rows (all with a loss), text tokens with a loss."""
    und = gen = labels = 0
    for item in (item for sample in samples for item in sample):
        if isinstance(item, TextItem):
            und += len(item.ids) + 2
            labels += len(item.ids) + 1 if item.loss else 0
        elif isinstance(item, VisionItem):
            side = model.config.vision.patch_size
            und += (item.image.shape[1] // side) * (item.image.shape[2] // side) + 2
        else:
            patch = model.config.latent_patch_size
            und += 2
            gen += (item.latent.shape[1] // patch) * (item.latent.shape[2] // patch)
    return und, gen, labels
