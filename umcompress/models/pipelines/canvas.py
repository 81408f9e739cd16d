"""Where pictures lie in the space that a pipeline denoises in, and through which noise it goes.

Nothing of this is written down for single pipelines: a call without a single denoising step shows how latents reach the
decoder, and that way is gone backwards. B pictures, n numbers of a picture's latents, z its shape in the autoencoder.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from umcompress.errors import ModelError
from umcompress.models.pictures import to_image
from umcompress.models.pipelines.painting import TRUE_SCALE, Painter, PaintingSettings, Stop
from umcompress.models.pipelines.stacks import PAINTS

Predicts = Literal["flow", "epsilon", "v_prediction", "sample"]
# Digits in which places are sent through: exact in bfloat16 also where they are scaled on the way.
_BASE = 16


@dataclass(frozen=True)
class Canvas:
    """The latents of a picture of one size.

    shape: of latents without the batch. z: their shape in the autoencoder, without the batch; what reaches its decoder
    is, flattened, `scale * latents[order] + shift`, (n,) each. pixels: height and width of the picture.
    times and noises: the sampler's steps, from noise to picture, and how much noise is in each: for flows the share of
    it, else the cumulated product of alphas. predicts: what the pipeline gives its scheduler.
    """

    shape: tuple[int, ...]
    z: tuple[int, ...]
    order: Tensor
    scale: Tensor
    shift: Tensor
    pixels: tuple[int, int]
    times: Tensor
    noises: Tensor
    predicts: Predicts

    def latents(self, encoded: Tensor) -> Tensor:
        """(B, *z) of the autoencoder -> (B, *shape) as the pipeline denoises them."""
        flat = (encoded.flatten(1) - self.shift.to(encoded)) / self.scale.to(encoded)
        found = torch.empty_like(flat)
        found[:, self.order.to(encoded.device)] = flat
        return found.view(-1, *self.shape)

    def at(self, time: float) -> tuple[Tensor, float]:
        """The scheduler's time and its noise for a time from 0 (picture) to 1 (noise), spread as the sampler's steps.

        Between two steps of a flow both are interpolated; other schedulers know whole times only.
        """
        place = (1 - time) * len(self.times)
        if self.predicts != "flow":
            index = min(int(place), len(self.times) - 1)
            return self.times[index], float(self.noises[index])
        steps = torch.arange(len(self.times) + 1, dtype=torch.float64).numpy()
        ends = self.times.new_zeros(1)
        now, noise = (
            np.interp(place, steps, torch.cat([values, ends.to(values)]).double().cpu().numpy())
            for values in (self.times, self.noises)
        )
        return torch.tensor(now, dtype=torch.float32), float(noise)

    def noised(self, latents: Tensor, noise: Tensor, amount: float) -> Tensor:
        """Latents with so much noise, as `at` gives it."""
        if self.predicts == "flow":
            return (1 - amount) * latents + amount * noise
        return math.sqrt(amount) * latents + math.sqrt(1 - amount) * noise

    def target(self, latents: Tensor, noise: Tensor, amount: float) -> Tensor:
        """What a pipeline that knew the picture would give its scheduler."""
        if self.predicts == "flow":
            return noise - latents
        if self.predicts == "v_prediction":
            return math.sqrt(amount) * noise - math.sqrt(1 - amount) * latents
        return noise if self.predicts == "epsilon" else latents


def picture_rows(values: Tensor) -> Tensor:
    """(B, rows, width) or (B, channels, ...) -> (R, width): a row for each place of the pictures."""
    if values.ndim > 3:
        values = values.movedim(1, -1)
    return values.reshape(-1, values.shape[-1])


def cannot_train(painter: Painter, found: str, do: str = "leave training steps out") -> ModelError:
    """The error for a pipeline that is not trained here."""
    return ModelError(f"train a pipeline of the class {painter.model.index.kind}", found, do)


def what_it_predicts(scheduler: Any) -> Predicts:
    """What a scheduler takes from a pipeline.  ModelError for one whose noise is unknown here."""
    name = type(scheduler).__name__
    kind = "flow" if name.startswith("FlowMatch") else getattr(scheduler.config, "prediction_type", None)
    if kind == "flow_prediction":
        kind = "flow"
    starts = getattr(scheduler, "init_noise_sigma", 1.0)
    cumulated = isinstance(getattr(scheduler, "alphas_cumprod", None), Tensor)
    inverted = bool(getattr(scheduler.config, "invert_sigmas", False))
    known = kind == "flow" or (kind in ("epsilon", "v_prediction", "sample") and cumulated)
    if not known or inverted or abs(float(starts) - 1) > 1e-6:
        raise ModelError(
            f"train with the scheduler {name}", "how it mixes picture and noise is not known here",
            "give the pipeline a scheduler of flow matching, or one that predicts noise, v or the picture",
        )
    return kind  # type: ignore[return-value]


def check_call(painter: Painter) -> None:
    """ModelError for a pipeline that cannot be called on latents of ours."""
    takes = inspect.signature(painter.kind.__call__).parameters
    if missing := [name for name in ("prompt", "latents", "num_inference_steps") if name not in takes]:
        raise cannot_train(painter, f"its call takes no {', '.join(missing)}")
    if not hasattr(painter.model, "vae"):
        raise cannot_train(painter, "it has no part `vae`, which encodes pictures")
    if PAINTS not in painter.model.stacks:
        raise cannot_train(painter, f"it has no stack of blocks in a part `{PAINTS}`")


@torch.no_grad()
def find_canvas(painter: Painter, settings: PaintingSettings) -> Canvas:
    """Find by calls that end at the decoder where the numbers of latents go, and the sampler's steps."""
    first = _Undenoised(painter, settings)
    shape = first.shape()
    count = math.prod(shape)
    digits = max(1, math.ceil(math.log(count, _BASE)))
    places = torch.arange(count)
    rows = [torch.zeros(count), torch.ones(count), *(places // _BASE**digit % _BASE for digit in range(digits))]
    reached = first.decoded(torch.stack([row.float() for row in rows]).view(-1, *shape))
    flat = reached.flatten(1).double()
    shift, scale = flat[0], flat[1] - flat[0]
    order = sum(((row - shift) / scale).round().long() * _BASE**digit for digit, row in enumerate(flat[2:]))
    assert isinstance(order, Tensor)
    if flat.shape[1] != count or not torch.equal(order.sort().values.cpu(), places):
        raise cannot_train(painter, "its latents do not reach the decoder one by one: pictures have no place in them")
    factor = _pixels_a_latent(first.pipeline)
    height, width = reached.shape[-2] * factor, reached.shape[-1] * factor
    predicts, (times, noises) = what_it_predicts(first.pipeline.scheduler), first.schedule()
    return Canvas(shape, tuple(reached.shape[1:]), order, scale, shift, (height, width), times, noises, predicts)


def _pixels_a_latent(pipeline: Any) -> int:
    names = ("vae_scale_factor", "vae_scale_factor_spatial", "vae_spatial_compression_ratio")
    return int(next((getattr(pipeline, name) for name in names if hasattr(pipeline, name)), 8))


class _Undenoised:
    """Calls of a pipeline in which no step is taken: what goes in as latents reaches the decoder as it is."""

    def __init__(self, painter: Painter, settings: PaintingSettings) -> None:
        self.painter, self.settings = painter, settings
        self.pipeline = painter.pipeline()
        self.times = torch.empty(0)

    def shape(self) -> tuple[int, ...]:
        """Of the latents that the pipeline makes by itself, without the batch."""
        made = self._called({"prompt": "", "generator": torch.Generator().manual_seed(0), "output_type": "latent"})
        return tuple(made.shape[1:])

    def decoded(self, latents: Tensor) -> Tensor:
        """(B, *shape) -> what reaches the decoder, (B, *z)."""
        dtype = self.painter.model.dtype
        options = {"prompt": [""] * len(latents), "latents": latents.to(dtype), "output_type": "np"}
        # Not by assignment, which would write the pipeline's configuration.
        vars(self.pipeline)["vae"] = _Decoder(self.painter.model.vae)
        try:
            self._called(options)
        except Stop as stop:
            found: Tensor = stop.args[0]
            if len(found) == len(latents):
                return found
        raise cannot_train(self.painter, "its decoder is not called as others are")

    def _called(self, options: dict[str, Any]) -> Any:
        scheduler, original = self.pipeline.scheduler, self.pipeline.scheduler.set_timesteps

        @functools.wraps(original)
        def without_steps(*args: Any, **kwargs: Any) -> None:
            original(*args, **kwargs)
            self.times = scheduler.timesteps
            scheduler.timesteps = scheduler.timesteps[:0]

        scheduler.set_timesteps = without_steps
        try:
            return self.painter.invoked(self.pipeline, unguided(self.painter, self.settings) | options)
        finally:
            del scheduler.set_timesteps

    def schedule(self) -> tuple[Tensor, Tensor]:
        """The sampler's steps and the noise in each, as `Canvas` has them; times that come twice once."""
        scheduler = self.pipeline.scheduler
        times: Tensor = self.times.cpu()
        first = torch.cat([torch.ones(1, dtype=torch.bool), times[1:] != times[:-1]])
        if what_it_predicts(scheduler) == "flow":
            return times[first], scheduler.sigmas.cpu()[: len(times)][first].double()
        return times[first], scheduler.alphas_cumprod.cpu()[times[first].round().long()].double()


class _Decoder:
    """In place of an autoencoder: takes what is to be decoded, in float32 at least, and ends the call with it."""

    def __init__(self, vae: Any) -> None:
        self._vae = vae
        self.dtype = torch.promote_types(next(vae.parameters()).dtype, torch.float32)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vae, name)

    def decode(self, encoded: Tensor, *_: Any, **__: Any) -> Any:
        raise Stop(encoded)


def unguided(painter: Painter, settings: PaintingSettings) -> dict[str, Any]:
    """Options of a call in which one branch alone is computed: what a single call of the denoiser says.

    Where the scale of the guidance goes into the denoiser as a number, that number stays.
    """
    options = painter.options(settings)
    options.pop("negative_prompt", None)
    name = painter.guidance_name
    if name is not None and not painter.takes_guidance:
        options[name] = 1.0 if name == TRUE_SCALE else painter.unguided_scale
    return options


def encoded(vae: Any, pictures: Sequence[Any], canvas: Canvas) -> Tensor:
    """Pictures (h, w, 3) of any size, scaled and cut to the canvas -> (B, *z), float32 at least."""
    weight = next(vae.parameters())
    pixels = torch.stack([_fitted(picture, canvas.pixels) for picture in pictures])
    if len(canvas.z) == 4:  # of films: one picture each
        pixels = pixels[:, :, None]
    out = vae.encode(pixels.to(weight.device, weight.dtype))
    found: Tensor = out.latent_dist.mode() if hasattr(out, "latent_dist") else out.latent
    if tuple(found.shape[1:]) != canvas.z:
        raise ModelError(
            "train on pictures", f"the encoder gives {list(found.shape[1:])}, the decoder takes {list(canvas.z)}",
            "set `sampling: {height: ..., width: ...}` to a size that the pipeline paints",
        )
    return found.to(torch.promote_types(found.dtype, torch.float32))


def _fitted(picture: Any, size: tuple[int, int]) -> Tensor:
    """(3, h, w) from -1 to 1: the middle of a picture, scaled so that it fills the size."""
    image = to_image(picture)
    height, width = size
    factor = max(height / image.height, width / image.width)
    scaled = image.resize(
        (max(width, round(image.width * factor)), max(height, round(image.height * factor))), Image.Resampling.BICUBIC
    )
    left, top = (scaled.width - width) // 2, (scaled.height - height) // 2
    values = np.asarray(scaled.crop((left, top, left + width, top + height)), np.float32)
    return torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1)
