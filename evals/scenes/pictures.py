"""Pictures of samples, for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from umcompress.evals.scenes.world import Image

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_MARGIN = 6
_LINE = 12


def _wrap(caption: str, width: int) -> list[str]:
    """A caption in lines of at most `width` characters, as far as its words allow."""
    lines: list[str] = []
    for word in caption.split():
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def contact_sheet(
    images: Sequence[Image], captions: Sequence[str] | None = None, scale: int = 4, columns: int = 6
) -> Picture:
    """Images (H, W, 3) in rows, enlarged without smoothing, each with its caption below.

    ValueError if there are no images, or not one caption an image.
    """
    from PIL import Image as Pillow
    from PIL import ImageDraw

    if not images:
        raise ValueError("a contact sheet needs at least one image")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"{len(images)} images but {len(captions)} captions")
    columns = min(columns, len(images))
    width = max(image.shape[1] for image in images) * scale
    height = max(image.shape[0] for image in images) * scale
    texts = [_wrap(caption, max(width // 6, 1)) for caption in captions or [""] * len(images)]
    text_height = _LINE * max(len(lines) for lines in texts)
    rows = -(-len(images) // columns)
    step_x, step_y = width + _MARGIN, height + text_height + _MARGIN
    sheet = Pillow.new("RGB", (columns * step_x + _MARGIN, rows * step_y + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (image, lines) in enumerate(zip(images, texts, strict=True)):
        x = _MARGIN + index % columns * step_x
        y = _MARGIN + index // columns * step_y
        size = (image.shape[1] * scale, image.shape[0] * scale)
        sheet.paste(Pillow.fromarray(image).resize(size, Pillow.Resampling.NEAREST), (x, y))
        for number, line in enumerate(lines):
            draw.text((x, y + height + number * _LINE), line, fill="black")
    return sheet


def save_contact_sheet(
    path: Path,
    images: Sequence[Image],
    captions: Sequence[str] | None = None,
    scale: int = 4,
    columns: int = 6,
) -> None:
    """Write a contact sheet as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(images, captions, scale, columns).save(path, format="PNG")
