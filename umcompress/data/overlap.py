"""Which samples of a calibration file are also items of an evaluation."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from umcompress.documents.files import read_bytes
from umcompress.extend.evaluation_base import ScoredItem
from umcompress.models.pictures import open_picture


@dataclass(frozen=True)
class Overlap:
    """same: items that are scored; pictures: others whose picture is asked about in the evaluation."""

    same: int
    pictures: int


def overlap(mine: Sequence[ScoredItem], scored: Iterable[ScoredItem]) -> Overlap:
    """Count the samples that an evaluation scores too: same text, and for questions the same picture.

    Texts compare without case, punctuation and extra blanks; pictures as files, and where those differ and the
    texts do not, as pixels.
    """
    texts: dict[str, list[ScoredItem]] = {}
    files: set[str] = set()
    wanted = {_plain(item.text) for item in mine}
    pictured = any(item.pictures for item in mine)
    for item in scored:
        text = _plain(item.text)
        if text in wanted:
            texts.setdefault(text, []).append(item)
        if pictured:
            files |= {_digest(picture) for picture in item.pictures}
    same = [item for item in mine if any(_alike(item, other) for other in texts.get(_plain(item.text), ()))]
    rest = [item for item in mine if item not in same]
    return Overlap(len(same), sum(any(_digest(picture) in files for picture in item.pictures) for item in rest))


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", " ", text.casefold()).split())


def _digest(picture: bytes | Path) -> str:
    return hashlib.sha256(picture if isinstance(picture, bytes) else read_bytes(picture)).hexdigest()


def _alike(one: ScoredItem, other: ScoredItem) -> bool:
    """Whether two samples of the same text share a picture, or both have none."""
    if not one.pictures or not other.pictures:
        return not one.pictures and not other.pictures
    return any(
        _digest(mine) == _digest(theirs) or _pixels(mine) == _pixels(theirs)
        for mine in one.pictures
        for theirs in other.pictures
    )


def _pixels(picture: bytes | Path) -> tuple[tuple[int, int], bytes]:
    image = open_picture(picture, "a picture to calibrate on or to score")
    return image.size, image.tobytes()


def _warning(name: str, count: int, found: Overlap) -> str:
    parts = [f"{found.same} of {count} calibration items are scored by {name}"] if found.same else []
    if found.pictures:
        parts.append(f"{found.pictures} of {count} {'more ' if parts else ''}show a picture that {name} asks about")
    return f"warning: {'; '.join(parts)}: the scores will flatter what was kept for them"
