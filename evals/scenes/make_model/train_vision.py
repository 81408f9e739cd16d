"""Second stage of training `bagel-mini`: the vision tower alone, so that it can tell the shapes apart.

BAGEL starts from a trained SigLIP; a tower that starts from nothing sees colours and places at once, but
learns shapes very late through the decoder.  Here two linear heads name shape and colour of every cell; they
are thrown away.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from umcompress.evals.scenes import world
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
    """Linear readers of a patch: its shape and its colour, or empty (class 0)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shape = nn.Linear(width, len(world.SHAPES) + 1)
        self.colour = nn.Linear(width, len(world.COLOUR_NAMES) + 1)


def labelled(rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures (count, 3, 36, 36), shape and colour of each of their cells (count * 9,)."""
    pictures = []
    shapes, colours = (torch.zeros(count, world.GRID**2, dtype=torch.long) for _ in range(2))
    for index in range(count):
        scene = world.sample_scene(rng)
        pictures.append(to_tensor(world.render(scene)))
        for thing in scene.objects:
            shapes[index, thing.cell] = world.SHAPES.index(thing.shape) + 1
            colours[index, thing.cell] = world.COLOUR_NAMES.index(thing.colour) + 1
    return torch.stack(pictures), shapes.flatten(), colours.flatten()


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
        images, shapes, colours = labelled(rng, settings.vision_batch)
        cut = [model.patchify(image) for image in images]
        context = VisionContext(Packing([len(patches) for patches, _ in cut]))
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            patches, ids = (torch.cat(part) for part in zip(*cut, strict=True))
            rows = tower(patches, ids, context)
            shape, colour = heads.shape(rows).float(), heads.colour(rows).float()
        loss = functional.cross_entropy(shape, shapes) + functional.cross_entropy(colour, colours)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == settings.vision_steps - 1:
            there = shapes > 0
            right = float((shape.argmax(-1) == shapes)[there].float().mean())
            log.write("vision", step, {"loss": float(loss.detach()), "shapes_right": right})
    save_checkpoint(checkpoint, {"both": both}, optimizer, settings.vision_steps)
