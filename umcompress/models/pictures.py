"""Pictures of any kind as the models take them. Needs Pillow only."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

from umcompress.errors import UsageError
from umcompress.files import regular

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
    """A calibration picture, as the models take it.  UsageError."""
    return read_image(open_picture(path, f"the calibration picture {path}"))


def open_picture(picture: Path | bytes, asked: str, do: str = "replace it") -> Any:
    """A picture, decoded as it is stored: of a regular file, or the bytes of one.  UsageError where it is none.

    Pillow says of pictures that would take gigabytes to unpack, by their own headers, that they are bombs.
    """
    from PIL import Image

    try:
        source = io.BytesIO(picture) if isinstance(picture, bytes) else regular(picture)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as found:
                found.load()
                return found
    except FileNotFoundError as error:
        raise UsageError(asked, "no such file", "check the path") from error
    except (*_BROKEN, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UsageError(asked, f"not readable as a picture: {error}", do) from error


# What Pillow raises for damaged and for hostile files, besides what it says of bombs.
_BROKEN = (
    OSError, ValueError, SyntaxError, TypeError, IndexError, KeyError, ArithmeticError, struct.error, MemoryError,
    EOFError, zlib.error,
)
