"""Write folders and files as a whole or not at all; digests of files."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from umcompress.documents.files import naming
from umcompress.errors import UsageError

_CHUNK = 1 << 20


@contextmanager
def atomic_folder(target: Path, replace: bool = False, sync: bool = True) -> Iterator[Path]:
    """Write a folder as a whole or not at all: yields a temporary folder, renamed to `target` on success.

    sync: wait first until all of it has reached the disk. A model folder can be made again from the run's steps,
    which are on the disk, so it need not.

    Leftovers of a killed run are removed, and an old folder that it had moved aside is put back.
    UsageError when `target` exists and may not be replaced.
    """
    target = Path(target)
    work, aside = target.with_name(f".{target.name}.partial"), target.with_name(f".{target.name}.old")
    if aside.exists():
        if target.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(target)
    if target.exists() and not replace:
        raise UsageError(f"write the folder {target}", "it exists already", "choose another or remove it")
    if work.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True)
    written = False
    try:
        yield work
        written = True
    finally:
        if not written:
            shutil.rmtree(work, ignore_errors=True)
    if sync:
        _sync_tree(work)
    if target.exists():
        target.rename(aside)
    work.rename(target)
    _sync(target.parent)
    if aside.exists():
        shutil.rmtree(aside)


@contextmanager
def atomic_file(file: Path, writer: str = "") -> Iterator[Path]:
    """Write a file as a whole or not at all: yields a path beside it, renamed to `file` on success.

    writer: sets apart what several processes write at once.  A full disk is told with the file's name.
    """
    work = file.with_name(f".{file.name}{writer and f'.{writer}'}.partial")
    with naming(file):
        yield work
        work.replace(file)


def write_text_atomic(file: Path, text: str, sync: bool = True) -> None:
    """Write a text file atomically.  sync: wait until it is on the disk."""
    with atomic_file(file) as work, work.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        if sync:
            os.fsync(stream.fileno())
    if sync:
        _sync(file.parent)


def sha256_file(file: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
