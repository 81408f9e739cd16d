"""Pictures of any kind as the models take them. Needs Pillow only."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umcompress.documents.files import regular
from umcompress.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

# Of 16 bits: Pillow would cut brightness off at 255, which leaves white.
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")


# What Pillow raises for damaged and for hostile files, besides what it says of bombs.
_BROKEN = (
    OSError, ValueError, SyntaxError, TypeError, IndexError, KeyError, ArithmeticError, struct.error, MemoryError,
    EOFError, zlib.error,
)


def to_image(picture: Any) -> Image:
    """Whatever is a picture (PIL, uint8 array) as a PIL RGB image; transparency lands on white."""
    import numpy as np
    from PIL import Image as Pillow

    image = picture if isinstance(picture, Pillow.Image) else Pillow.fromarray(np.asarray(picture))
    if image.mode in _DEEP:
        values = np.asarray(image).astype(np.int64)
        image = Pillow.fromarray((values >> 8 if values.max() > 255 else values).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "P") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Pillow.alpha_composite(Pillow.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")


def open_picture(picture: Path | bytes | Image, asked: str, do: str = "replace it") -> Image:
    """A picture as people see it, in RGB: the one way in which a regular file, its bytes or a PIL image is read.

    Turned as its camera says (EXIF); of an animation the first picture; otherwise as `to_image`. UsageError where it
    is none. Pillow says of pictures that would take gigabytes to unpack, by their own headers, that they are bombs.
    """
    from PIL import Image as Pillow
    from PIL import ImageOps

    try:
        if isinstance(picture, Pillow.Image):
            return to_image(ImageOps.exif_transpose(picture))
        source = io.BytesIO(picture) if isinstance(picture, bytes) else regular(picture)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Pillow.DecompressionBombWarning)
            with Pillow.open(source) as found:
                return to_image(ImageOps.exif_transpose(found))
    except FileNotFoundError as error:
        raise UsageError(asked, "no such file", "check the path") from error
    except (*_BROKEN, Pillow.DecompressionBombError, Pillow.DecompressionBombWarning) as error:
        raise UsageError(asked, f"not readable as a picture: {error}", do) from error
