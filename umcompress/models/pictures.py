"""Pictures of any kind as the models take them. Needs Pillow only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from umcompress.errors import UsageError

# Of 16 bits: Pillow would cut brightness off at 255, which leaves white.
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def to_image(picture: Any) -> Any:
    """Whatever is a picture (PIL, uint8 array) as a PIL RGB image; transparency lands on white."""
    import numpy as np
    from PIL import Image

    image = picture if isinstance(picture, Image.Image) else Image.fromarray(np.asarray(picture))
    if image.mode in _DEEP:
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray((values >> 8 if values.max() > 255 else values).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "P") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")


def read_image(opened: Any) -> Any:
    """An opened file as RGB, turned as its camera says (EXIF)."""
    from PIL import ImageOps

    return to_image(ImageOps.exif_transpose(opened))


def opened(path: Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            return read_image(opened)
    except (OSError, UnidentifiedImageError) as error:
        raise _unreadable(path, error) from error


def _unreadable(picture: Path, error: OSError) -> UsageError:
    return UsageError(f"the calibration picture {picture}", f"not readable: {error}", "replace it")
