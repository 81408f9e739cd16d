"""The training golden: three packed samples, both losses, gradient norms of every parameter."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from golden.checker import Checker, Golden
from umcompress.models.bagel.model import Bagel
from umcompress.models.bagel.training import Item, LatentItem, Sample, TextItem, VisionItem, training_forward


def padded_latents(model: Bagel, golden: Golden, images: list[Tensor]) -> list[Tensor]:
    """All latent images of the pack on one zero-padded canvas, encoded together, then cut back."""
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    canvas = torch.stack([
        functional.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images
    ])
    latents = model.vae.encode(canvas, golden["in.vae_posterior_noise"])
    side = model.config.autoencoder.downsample
    return [
        latent[:, : image.shape[1] // side, : image.shape[2] // side]
        for latent, image in zip(latents, images, strict=True)
    ]


def build_samples(model: Bagel, golden: Golden, plans: list[list[dict[str, Any]]]) -> list[Sample]:
    """The items of every plan, with the golden's noise and raw times."""
    entries = [(s, entry) for s, plan in enumerate(plans) for entry in plan]
    counts: dict[tuple[int, str], int] = {}
    named = []
    for sample, entry in entries:
        kind = "text" if entry["type"] == "text" else "image"
        index = counts.get((sample, kind), 0)
        counts[sample, kind] = index + 1
        named.append((sample, entry, golden[f"in.sample{sample}.{kind}{index}"]))
    with torch.no_grad():
        latents = padded_latents(model, golden, [x for _, e, x in named if e["type"] == "vae_image"])
    samples: list[list[Item]] = [[] for _ in plans]
    row = used = 0
    for sample, entry, value in named:
        if entry["type"] == "text":
            samples[sample].append(TextItem(value, bool(entry["loss"])))
        elif entry["type"] == "vit_image":
            samples[sample].append(VisionItem(value))
        else:
            latent = latents[used]
            count = latent.shape[1] * latent.shape[2] // model.config.latent_patch_size**2
            samples[sample].append(LatentItem(
                latent, bool(entry["loss"]), float(golden["in.raw_timesteps"][row]),
                golden["in.flow_noise"][row : row + count],
            ))
            row, used = row + count, used + 1
    return list(samples)


def check_train(model: Bagel, checker: Checker, golden: Golden, meta: dict[str, Any]) -> None:
    meta = meta["train"]
    model.zero_grad()
    model.vae.requires_grad_(False)
    output = training_forward(model, build_samples(model, golden, meta["plans"]))
    checker.close(golden, "out.mse", output.mse.detach())
    checker.close(golden, "out.ce", output.ce.detach())
    loss = output.loss()
    checker.number("train: loss_ce", float(output.ce.mean()), meta["loss_ce"])
    checker.number("train: loss_mse", float(output.mse.mean()), meta["loss_mse"])
    checker.number("train: loss_total", float(loss), meta["loss_total"])
    loss.backward()  # type: ignore[no-untyped-call]
    norms = {
        name: float(parameter.grad.norm())
        for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    expected = json.loads((checker.folder / "train_grad_norms.json").read_text())
    expected = expected.get("norms", expected)
    for name, theirs in expected.items():
        if theirs is not None:
            checker.norm(f"train: gradient of {name}", norms.get(name, float("nan")), theirs)
    without = sorted(
        name for name, p in model.named_parameters() if p.grad is None and not name.startswith("vae.")
    )
    checker.equal("train: parameters without gradient", without, sorted(meta["no_grad_params"]))
    total = sum(value**2 for value in norms.values()) ** 0.5
    checker.norm("train: total gradient norm", total, meta["grad_norm_total"])
    model.zero_grad()
