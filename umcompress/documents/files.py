"""Read files that a user names: regular files only, to a size and a depth that can be dealt with.

What is refused is an OSError or a ValueError, as what `open` and `json.loads` themselves refuse: whoever reads says
of which file it is.
"""

from __future__ import annotations

import errno
import json
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# A text is held in memory as a whole; so is the longest header of a weight file, which is JSON.
MOST_BYTES = 2 * 2**30
# Brackets inside each other. No configuration comes near; Python's own limit is a thousand calls, ours among them.
DEEPEST = 100
_BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)


def regular(path: Path) -> Path:
    """The path of a regular file.  OSError for anything else: pipes, sockets and devices may never come to an end."""
    try:
        mode = path.stat().st_mode
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, f"no file can have this name: {error}", repr(str(path))) from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return path


def is_regular(path: Path) -> bool:
    """Whether there is a regular file of that name; False for names that no file can have."""
    try:
        return path.is_file()
    except OSError:  # too long
        return False


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file.  OSError where it is another thing, or larger than `most`."""
    size = regular(path).stat().st_size
    if size > most:
        raise OSError(errno.EFBIG, f"it has {size} bytes; up to {most} are read", str(path))
    return path.read_bytes()


def read_text(path: Path, encoding: str = "utf-8", errors: str = "strict") -> str:
    """The text of a regular file, its line ends made one.  OSError, UnicodeDecodeError."""
    text = read_bytes(path).decode(encoding, errors)
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.  ValueError where it is none, or nested too deeply."""
    decoded = text.decode("utf-8") if isinstance(text, bytes) else text
    depth = 0
    # Counted before it is read: what reads the value after us descends into it, too.
    if decoded.count("[") + decoded.count("{") > DEEPEST:
        for found in _BRACKETS.finditer(decoded):
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
            if depth > DEEPEST:
                raise ValueError(f"more than {DEEPEST} brackets inside each other")
    return json.loads(decoded)


def read_json(path: Path) -> Any:
    """The value in a JSON file.  OSError, ValueError."""
    return parse_json(read_text(path))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Say of which file it is when the system refuses to go on writing: a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def within(folder: Path, name: Any) -> Path:
    """A file that a document in `folder` names.  ValueError for a name that leads out of the folder, or is none."""
    if not isinstance(name, str) or not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{name!r} is no name of a file in the folder")
    return folder / name


__all__: Sequence[str] = (
    "is_regular", "naming", "parse_json", "read_bytes", "read_json", "read_text", "regular", "within",
)
