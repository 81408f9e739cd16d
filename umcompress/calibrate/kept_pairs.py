"""What a sweep saw of feed-forwards, kept where it is small: sums that are decided upon later need no further sweep.

Of each call, in the order of calls: x (T, H), which enters, and h (T, I), the channels. Sums over these are those of
another sweep over the same data, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from torch import Tensor

from umcompress.calibrate.statistics import Key

# Bytes that are kept at most; beyond, everything is let go, and a further sweep runs the model again.
MOST = 1e9


class KeptPairs:
    """Pairs by site, as long as they fit. On a GPU none: its memory is dear, and a sweep is short."""

    def __init__(self, room: float) -> None:
        self._room = min(room, MOST)
        self._pairs: dict[Key, list[tuple[Tensor, Tensor]]] = {}

    def keep(self, key: Key) -> Callable[[Tensor, Tensor], None]:
        """What is to be told of every pair of a site."""
        self._pairs[key] = []

        def add(x: Tensor, h: Tensor) -> None:
            self._room -= x.numel() * x.element_size() + h.numel() * h.element_size()
            if self._room < 0 or x.device.type != "cpu":
                self._room = -1.0
                self._pairs.clear()
            else:
                # Copies: what comes behind may write into them.
                self._pairs[key].append((x.clone(), h.clone()))

        return add

    def has(self, keys: Collection[Key]) -> bool:
        """Whether all pairs of these sites are there."""
        return all(key in self._pairs for key in keys)

    def of(self, key: Key) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._pairs[key])
