"""Compute items in another thread while earlier ones are used, so that reading and writing overlap."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


def read_ahead(parts: Iterator[T], depth: int = 2) -> Iterator[T]:
    """Yield the same items, computed ahead in another thread."""
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    gone = threading.Event()

    def put(item: T | None, error: BaseException | None) -> None:
        while not gone.is_set():
            try:
                ready.put((item, error), timeout=0.1)
                return
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in parts:
                put(item, None)
                if gone.is_set():
                    return
            put(None, StopIteration())
        except BaseException as error:  # whatever it is belongs to the thread that asked
            put(None, error)

    threading.Thread(target=make, daemon=True).start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        gone.set()
