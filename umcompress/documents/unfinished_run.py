"""The error message for output folders of runs that are not finished."""

from __future__ import annotations

import shlex
from pathlib import Path

from umcompress.documents.file_names import RESOLVED, RUN


def unfinished(folder: Path, lacks: str) -> tuple[str, str] | None:
    """(What is found, what to do) where `folder` is that of a run without what it `lacks`; None for any other."""
    try:
        ours = '"umcompress_run"' in (folder / RUN).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    if not ours:
        return None
    done = [path.name.removeprefix("00-") for path in sorted((folder / "steps").glob("[!.]*")) if path.is_dir()]
    steps = f"; done so far: {', '.join(done)}" if done else ""
    recipe, place = shlex.quote(str(folder / RESOLVED)), shlex.quote(str(folder))
    return (
        f"the output folder of a run that is not finished: {lacks} comes at its end{steps}",
        f"give the command that began it again, or umcompress apply {recipe} -o {place}: it goes on",
    )
