"""Lines of users' files. Only a line feed ends one, with or without a carriage return before it.

Python's own `splitlines` also ends lines at form feeds and at U+0085, U+2028 and U+2029, which JSON has inside strings.
"""

from __future__ import annotations

from pathlib import Path

from umcompress.documents.files import read_bytes


def lines_of(text: str) -> list[str]:
    """The lines of a text, without their ends."""
    found = [line.removesuffix("\r") for line in text.split("\n")]
    return found if found[-1] else found[:-1]


def text_of(path: Path) -> str:
    """What a file of UTF-8 holds, a byte order mark aside; no character is taken for another.

    OSError, UnicodeDecodeError.
    """
    return read_bytes(path).decode("utf-8-sig")
