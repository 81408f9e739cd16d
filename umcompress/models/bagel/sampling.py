"""From noise to pictures: contexts, guidance, the Euler steps.  G latent tokens in all, D values each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from umcompress.graph.repeats import repeated
from umcompress.models.bagel.context import Cache
from umcompress.models.bagel.model import Bagel, PictureLayout

Renorm = Literal["global", "channel", "text_channel"]


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: active for `interval[0] < t <= interval[1]`, t after the shift."""

    text_scale: float = 4.0
    image_scale: float = 1.0
    interval: tuple[float, float] = (0.4, 1.0)
    renorm_type: Renorm = "global"
    renorm_min: float = 0.0

    def at(self, t: float) -> Guidance:
        """What holds at time t: itself, or no guidance outside the interval."""
        low, high = self.interval
        if low < t <= high:
            return self
        return Guidance(1.0, 1.0, self.interval, self.renorm_type, self.renorm_min)


@dataclass
class Contexts:
    """The caches of a generation: everything; without the last text; without the images, None where no step asks."""

    full: Cache
    text_cfg: Cache
    image_cfg: Cache | None
    # Of pictures behind a cache as it was after so many positions.
    _layouts: dict[tuple[object, ...], PictureLayout] = field(default_factory=dict, repr=False)

    @classmethod
    def empty(cls, batch: int, image_guidance: bool = True) -> Contexts:
        return cls(Cache(batch), Cache(batch), Cache(batch) if image_guidance else None)

    def layout(self, model: Bagel, cache: Cache, sizes: Sequence[tuple[int, int]]) -> PictureLayout:
        """Of pictures behind one of the caches: worked out once, and not once a denoising step."""
        key = (id(cache), *cache.positions, *sizes)
        if key not in self._layouts:
            self._layouts[key] = model.picture_layout(cache, sizes)
        return self._layouts[key]

    def add_text(self, model: Bagel, ids: Sequence[Tensor]) -> None:
        """The text guidance forgets this text; the image guidance keeps it."""
        self.text_cfg = self.full.fork()
        model.absorb_text(self.full, ids)
        if self.image_cfg is not None:
            model.absorb_text(self.image_cfg, ids)

    def add_image(self, model: Bagel, latents: Sequence[Tensor] | None, images: Sequence[Tensor]) -> None:
        """The clean latent (none where only text is wanted), then the picture as the vision tower sees it."""
        if latents is not None:
            model.absorb_latents(self.full, latents)
        model.absorb_vision(self.full, images)
        self.text_cfg = self.full.fork()


def timesteps(count: int, shift: float) -> Tensor:
    """`count` times from 1 to 0, float32; `count - 1` steps lie between them."""
    tau = torch.linspace(1, 0, count)
    return shift * tau / (1 + (shift - 1) * tau)


def guided_velocity(
    model: Bagel,
    contexts: Contexts,
    tokens: Tensor,
    t: float,
    sizes: Sequence[tuple[int, int]],
    guidance: Guidance,
) -> Tensor:
    """(G, D) float32.  Norms of the "global" renorm are taken over each image, whatever shares its batch."""
    def velocity(cache: Cache) -> Tensor:
        return model.velocity(cache, tokens, t, sizes, contexts.layout(model, cache, sizes))

    v = velocity(contexts.full)
    rule = guidance.at(t)
    if rule.text_scale <= 1.0:
        return v
    v_text = velocity(contexts.text_cfg)
    u = v_text + rule.text_scale * (v - v_text)
    v_image = None
    if rule.image_scale > 1.0:
        assert contexts.image_cfg is not None, "contexts without image guidance"
        v_image = velocity(contexts.image_cfg)
    if rule.renorm_type == "text_channel":
        u = u * _ratio(v.norm(dim=-1, keepdim=True), u.norm(dim=-1, keepdim=True), rule)
        return u if v_image is None else v_image + rule.image_scale * (u - v_image)
    if v_image is not None:
        u = v_image + rule.image_scale * (u - v_image)
    if rule.renorm_type == "channel":
        return u * _ratio(v.norm(dim=-1, keepdim=True), u.norm(dim=-1, keepdim=True), rule)
    counts = [rows * columns for rows, columns in sizes]
    norms = [torch.stack([part.norm() for part in torch.split(x, counts)]) for x in (v, u)]
    image = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(u.device)
    return u * _ratio(norms[0], norms[1], rule)[image, None]


def _ratio(dense: Tensor, guided: Tensor, rule: Guidance) -> Tensor:
    return (dense / (guided + 1e-8)).clamp(rule.renorm_min, 1.0)


@torch.no_grad()
def denoise(
    model: Bagel,
    contexts: Contexts,
    noise: Tensor,
    sizes: Sequence[tuple[int, int]],
    num_timesteps: int,
    shift: float,
    guidance: Guidance,
    at_time: Callable[[float], None] | None = None,
) -> Tensor:
    """Euler steps from noise (G, D) at t=1 to latent tokens (G, D) at t=0; `num_timesteps - 1` of them.

    The two markers around a picture are understanding rows of every step: calibration counts those of the first alone,
    or they would be most of what it sees of understanding.
    """
    times = timesteps(num_timesteps, shift).tolist()
    x = noise.float()
    for number, (t, following) in enumerate(pairwise(times)):
        if at_time is not None:
            at_time(t)
        with repeated("understanding") if number else nullcontext():
            x = x - guided_velocity(model, contexts, x, t, sizes, guidance) * (t - following)
    return x


@torch.no_grad()
def decode_images(model: Bagel, tokens: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Latent tokens (G, D) -> images (3, h, w), not clamped; images of one size are decoded together."""
    counts = [rows * columns for rows, columns in sizes]
    latents = [
        model.latent_image(part, size) for part, size in zip(torch.split(tokens, counts), sizes, strict=True)
    ]
    dtype = model.vae.decoder.conv_in.weight.dtype
    if len(set(sizes)) == 1:
        return list(model.vae.decode(torch.stack(latents).to(dtype)))
    return [model.vae.decode(latent[None].to(dtype))[0] for latent in latents]


def to_pixels(image: Tensor) -> NDArray[np.uint8]:
    """(3, h, w) in [-1, 1] -> (h, w, 3) uint8, truncated as the official code does."""
    scaled = (image.float() * 0.5 + 0.5).clamp(0, 1) * 255
    pixels: NDArray[np.uint8] = scaled.permute(1, 2, 0).to(torch.uint8).cpu().numpy()
    return pixels
