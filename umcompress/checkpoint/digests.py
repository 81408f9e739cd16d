"""Digests of whole files, several at a time; a file that has not changed is read once in a process."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from umcompress.documents.files import regular

# What lies beside a model and is never read of it: texts for people, pictures, weights in formats that are refused.
_NOT_READ = frozenset({
    ".md", ".txt~", ".pdf", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx",
    ".msgpack", ".h5", ".lock",
})  # fmt: skip


def digest_of(file: Path) -> str:
    """Of all bytes of a regular file, as hex.  OSError."""
    found = regular(file).stat()
    # Whoever changes a file and puts its time of change back cannot put back the time that the system keeps (ctime).
    return _digest(str(file.resolve()), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


@cache
def _digest(file: str, *_identity: int) -> str:
    with Path(file).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def digests_of(files: Iterable[Path]) -> dict[Path, str]:
    """The digest of each file.  hashlib lets other threads work while it reads."""
    listed = list(files)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(listed, pool.map(digest_of, listed), strict=True))


def files_under(folder: Path) -> list[Path]:
    """All regular files in a folder and those below it, sorted; hidden ones left out."""
    found: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place) / name for name in names if not name.startswith(".")]
    return sorted(file for file in found if file.is_file())


def model_files(folder: Path, code: bool) -> list[Path]:
    """The files that a model folder's outputs may depend on: weights, configurations, all of a tokenizer's.

    code: its Python files, too. Checkpoints of a training, in folders of their own, are other models.
    """
    def read(file: Path) -> bool:
        inside = file.relative_to(folder)
        if file.suffix == ".py":
            return code
        if "__pycache__" in inside.parts:  # what Python makes of those, anew at each installation
            return False
        return file.suffix.lower() not in _NOT_READ and not any(p.startswith("checkpoint-") for p in inside.parts[:-1])

    return [file for file in files_under(folder) if read(file)]
