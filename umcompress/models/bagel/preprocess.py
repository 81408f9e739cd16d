"""Pictures into tensors, by the official resize rule.  Needs Pillow only."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from umcompress.models.bagel.config import BagelConfig, ImageRule
from umcompress.models.pictures import to_image

MAX_PIXELS = 14 * 14 * 9 * 1024


def resized_size(
    size: tuple[int, int],
    max_size: int,
    min_size: int,
    stride: int,
    max_pixels: int = MAX_PIXELS,
    images: int = 1,
) -> tuple[int, int]:
    """(height, width) in pixels -> the size that the model sees.

    As the official rule does, an area over `max_pixels / images` is scaled by the plain ratio, not its root,
    and `min_size` can be violated for elongated pictures.
    """
    scale = max(min(max_size / max(size), 1.0), min_size / min(size))
    size = _strided(size, scale, stride)
    area, limit = size[0] * size[1], max_pixels / images
    if area > limit:
        size = _strided(size, limit / area, stride)
    if max(size) > max_size:
        size = _strided(size, max_size / max(size), stride)
    return size


def _strided(size: tuple[int, int], scale: float, stride: int) -> tuple[int, int]:
    height, width = (max(stride, round(round(side * scale) / stride) * stride) for side in size)
    return height, width


def resize(image: Any, rule: ImageRule) -> Any:
    """A PIL image under `rule`: bicubic with antialias."""
    from PIL import Image

    width, height = image.size
    new = resized_size((height, width), rule.max_size, rule.min_size, rule.stride)
    if new == (height, width):
        return image
    return image.resize((new[1], new[0]), Image.Resampling.BICUBIC)


def normalise(image: Any) -> Tensor:
    """PIL RGB -> (3, h, w) float32 in [-1, 1]."""
    pixels: NDArray[np.uint8] = np.asarray(image, dtype=np.uint8)
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1


def vision_input(picture: Any, config: BagelConfig) -> Tensor:
    """What the vision tower gets: the interleaved inferencer resizes by the latent rule first."""
    image = to_image(picture)
    if not config.direct_vit_input:
        image = resize(image, config.vae_rule)
    return normalise(resize(image, config.vit_rule))
