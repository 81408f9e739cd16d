"""`umcompress generate` and `umcompress ask`: one picture, one answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from umcompress.errors import UsageError


def generate(
    model: str, prompt: str, out: Path, *, seed: int = 0, steps: int | None = None, guidance: float | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Paint one picture and write it."""
    if not out.parent.is_dir():
        raise UsageError(f"write {out}", f"there is no folder {out.parent}", "make it first, or choose another -o")
    from PIL import Image

    if out.suffix.lower() not in Image.registered_extensions():
        raise UsageError(f"write {out}", f"no picture format {out.suffix!r}", "name a file that ends in .png")
    from umcompress.models.source import open_source

    source = open_source(model, trust_remote_code=trust_remote_code)
    runner: Any = source.runner(source.load())
    if steps is not None or guidance is not None:
        runner.settings(steps=steps, guidance=guidance)
    picture = runner.generate([prompt], seed)[0]
    try:
        Image.fromarray(picture).save(out)
    except (OSError, ValueError) as error:
        raise UsageError(f"write {out}", str(error), "name a file that ends in .png") from error
    return out


def ask(model: str, picture: Path, question: str, trust_remote_code: bool = False) -> str:
    """Answer one question about one picture."""
    from PIL import Image, UnidentifiedImageError

    from umcompress.models.pictures import read_image
    from umcompress.models.source import open_source

    source = open_source(model, trust_remote_code=trust_remote_code)
    try:
        with Image.open(picture) as opened:
            image = read_image(opened)
    except FileNotFoundError as error:
        raise UsageError(f"the picture {picture}", "no such file", "check the path") from error
    except (UnidentifiedImageError, OSError) as error:
        found = f"not readable as a picture: {error}"
        raise UsageError(f"the picture {picture}", found, "give a PNG or JPEG") from error
    return source.runner(source.load()).answer([image], [question])[0]
