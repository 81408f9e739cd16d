"""Second stage of training `bagel-mini`: the vision tower alone, so that it can tell the shapes apart.

BAGEL starts from a trained SigLIP; a tower that starts from nothing sees colours and places at once, but
learns shapes very late through the decoder.  Here linear heads name shape, colour and fill of every cell; they
are thrown away.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from umcompress.evals.scenes import world
from umcompress.evals.scenes.glyphs import FILLS, SHAPES
from umcompress.evals.scenes.make_model.training import (
    Log,
    Settings,
    cosine,
    load_checkpoint,
    save_checkpoint,
    to_tensor,
)
from umcompress.models.bagel.model import Bagel
from umcompress.models.bagel.packing import Packing
from umcompress.models.bagel.vision import VisionContext


class Heads(nn.Module):
    """Linear readers of a patch: its shape, its colour and its fill, or empty (class 0)."""

    NAMES = (SHAPES, world.COLOUR_NAMES, FILLS)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.readers = nn.ModuleList(nn.Linear(width, len(names) + 1) for names in self.NAMES)

    def forward(self, rows: Tensor) -> list[Tensor]:
        return [reader(rows).float() for reader in self.readers]


def labelled(rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Pictures (count, 3, 48, 48); shape, colour and fill of each of their cells (3, count * 9)."""
    pictures = []
    labels = torch.zeros(len(Heads.NAMES), count, world.GRID**2, dtype=torch.long)
    for index in range(count):
        scene = world.sample_scene(rng, objects=1 + int(rng.integers(world.GRID**2)))
        pictures.append(to_tensor(world.render(scene)))
        for thing in scene.objects:
            named = zip(Heads.NAMES, (thing.shape, thing.colour, thing.fill), strict=True)
            labels[:, index, thing.cell] = torch.tensor([names.index(name) + 1 for names, name in named])
    return torch.stack(pictures), labels.flatten(1)


def train_vision(model: Bagel, settings: Settings, out: Path, log: Log) -> None:
    """Train `model.vit_model` in place, resuming from `out/vision.safetensors` if it is there."""
    tower = model.vit_model
    torch.manual_seed(settings.seed + 1)
    heads = Heads(model.config.vision.hidden_size)
    both = nn.ModuleList([tower, heads])
    optimizer = torch.optim.AdamW(
        both.parameters(), lr=settings.vision_lr, betas=(0.9, 0.98), weight_decay=0.01
    )
    checkpoint = out / "vision"
    start = load_checkpoint(checkpoint, {"both": both}, optimizer)
    for step in range(start, settings.vision_steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, settings.vision_steps, 100) * settings.vision_lr
        rng = np.random.default_rng((settings.seed, 4, step))
        images, labels = labelled(rng, settings.vision_batch)
        cut = [model.patchify(image) for image in images]
        context = VisionContext(Packing([len(patches) for patches, _ in cut]))
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            patches, ids = (torch.cat(part) for part in zip(*cut, strict=True))
            rows = tower(patches, ids, context)
            read = heads(rows)
        losses = [functional.cross_entropy(one, truth) for one, truth in zip(read, labels, strict=True)]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == settings.vision_steps - 1:
            there = labels[0] > 0
            right = float((read[0].argmax(-1) == labels[0])[there].float().mean())
            log.write("vision", step, {"loss": float(loss.detach()), "shapes_right": right})
    save_checkpoint(checkpoint, {"both": both}, optimizer, settings.vision_steps)
