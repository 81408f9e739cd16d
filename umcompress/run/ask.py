"""`umcompress generate` and `umcompress ask`: one picture, one answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from umcompress.errors import UsageError

if TYPE_CHECKING:
    from umcompress.models.runner import Runner


def generate(
    model: str, prompt: str, out: Path, *, seed: int = 0, steps: int | None = None, guidance: float | None = None,
    force: bool = False, trust_remote_code: bool = False,
) -> Path:
    """Paint one picture and write it; a file that is there is replaced only by `force`."""
    if not out.parent.is_dir():
        raise UsageError(f"write {out}", f"there is no folder {out.parent}", "make it first, or choose another -o")
    if out.exists() and not force:
        raise UsageError(f"write {out}", "it exists already", "choose another -o, or add --force to replace it")
    from PIL import Image

    if out.suffix.lower() not in Image.registered_extensions():
        raise UsageError(f"write {out}", f"no picture format {out.suffix!r}", "name a file that ends in .png")
    from umcompress.models.source import open_source

    source = open_source(model, trust_remote_code=trust_remote_code)
    runner: Runner = source.runner(source.load())
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
    from umcompress.models.pictures import open_picture
    from umcompress.models.source import open_source

    source = open_source(model, trust_remote_code=trust_remote_code)
    image = open_picture(picture, f"the picture {picture}", "give a PNG or JPEG")
    return source.runner(source.load()).answer([image], [question])[0]
