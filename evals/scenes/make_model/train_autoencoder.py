"""First stage of training `bagel-mini`: a small autoencoder of scene pictures.

Reconstruction (L1 and squared error) with a small KL term; afterwards scale and shift are set so that a
latent has mean zero and variance one over training scenes, which is what the flow of the second stage
expects.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
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
from umcompress.models.bagel.autoencoder import AutoEncoder
from umcompress.models.bagel.config import AutoencoderConfig


def scene_images(rng: np.random.Generator, count: int) -> Tensor:
    """(count, 3, 48, 48) in [-1, 1], training scenes with one to nine objects: every cell may be drawn in."""
    wanted = 1 + rng.integers(world.GRID**2, size=count)
    scenes = [world.sample_scene(rng, objects=int(objects)) for objects in wanted]
    return torch.stack([to_tensor(world.render(scene)) for scene in scenes])


def train_autoencoder(config: AutoencoderConfig, settings: Settings, out: Path, log: Log) -> AutoEncoder:
    """Train, resuming from `out/autoencoder.safetensors` if it is there."""
    torch.manual_seed(settings.seed)
    model = AutoEncoder(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.autoencoder_lr, betas=(0.9, 0.95))
    checkpoint = out / "autoencoder"
    start = load_checkpoint(checkpoint, {"model": model}, optimizer)
    for step in range(start, settings.autoencoder_steps):
        rate = cosine(step, settings.autoencoder_steps, 50) * settings.autoencoder_lr
        for group in optimizer.param_groups:
            group["lr"] = rate
        rng = np.random.default_rng((settings.seed, 1, step))
        images = scene_images(rng, settings.autoencoder_batch)
        loss = _loss(model, images, settings, torch.Generator().manual_seed(settings.seed * 1_000_003 + step))
        optimizer.zero_grad(set_to_none=True)
        loss["total"].backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == settings.autoencoder_steps - 1:
            log.write("autoencoder", step, {name: float(value.detach()) for name, value in loss.items()})
        if (step + 1) % 250 == 0 or step == settings.autoencoder_steps - 1:
            save_checkpoint(checkpoint, {"model": model}, optimizer, step + 1)
    return model


def _loss(
    model: AutoEncoder, images: Tensor, settings: Settings, generator: torch.Generator
) -> dict[str, Tensor]:
    with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
        mean, log_variance = model.encoder(images).float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-20, 4)
        noise = torch.randn(mean.shape, generator=generator)
        decoded = model.decoder(mean + torch.exp(0.5 * log_variance) * noise).float()
    absolute, squared = functional.l1_loss(decoded, images), functional.mse_loss(decoded, images)
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    return {"total": absolute + squared + settings.kl_weight * kl, "l1": absolute, "mse": squared, "kl": kl}


@torch.no_grad()
def latent_statistics(model: AutoEncoder, seed: int, count: int = 2048) -> tuple[float, float]:
    """(scale, shift) that make the posterior means of training scenes zero-mean with unit variance."""
    images = scene_images(np.random.default_rng((seed, 2)), count)
    means = torch.cat([model.encoder(part).chunk(2, dim=1)[0] for part in torch.split(images, 256)])
    return float(1 / means.std()), float(means.mean())
