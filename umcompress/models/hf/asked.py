"""Questions about pictures in batches: pictures of one size together, so many tokens at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from umcompress.models.hf.pictures import Call
from umcompress.models.hf.runner import BATCH_TOKENS

# Token ids, and what the vision tower takes.
Asked = tuple[list[int], Call]


def several(entry: Any) -> list[Any]:
    """The pictures of one question."""
    if entry is None:
        return []
    return list(entry) if isinstance(entry, list | tuple) else [entry]


def split_by_pictures(images: Sequence[Any]) -> tuple[list[int], list[int]]:
    """Places with pictures, and those without."""
    shown = [index for index, entry in enumerate(images) if several(entry)]
    return shown, [index for index, entry in enumerate(images) if not several(entry)]


def batches(asked: Mapping[int, Asked], more: int, padded: bool = True) -> Iterator[list[int]]:
    """Keys of what can be read at once: pictures of one size, of about so many tokens; unpadded, of one length."""
    groups: dict[Any, list[int]] = {}
    for index, (ids, call) in sorted(asked.items(), key=lambda item: len(item[1][0])):
        kind = (call["pixel_values"].shape[1:], None if padded else len(ids))
        groups.setdefault(kind, []).append(index)
    for group in groups.values():
        batch: list[int] = []
        for index in group:
            if batch and (len(asked[index][0]) + more) * (len(batch) + 1) > BATCH_TOKENS:
                yield batch
                batch = []
            batch.append(index)
        yield batch
