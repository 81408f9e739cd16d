"""Several runs of one model side by side, one computing at a time: at each stop the next one's turn comes.

Runs that stop at the same places reach each of them together, so that what has to be fetched for a place (the weights
of a block that lie on disk) is fetched once for all of them. Threads serve as coroutines here; nothing runs at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence


class _Abandoned(BaseException):
    """Unwinds a run that waits while another one has failed."""


class Lockstep:
    """Call `pause` where a run may stop; outside of `run` it does nothing."""

    def __init__(self) -> None:
        self._waiting: deque[threading.Semaphore] = deque()
        self._own: dict[int, threading.Semaphore] = {}
        self._all_done = threading.Semaphore(0)
        self._failure: BaseException | None = None

    def run(self, works: Sequence[Callable[[], None]]) -> None:
        """All of `works`, to their ends.  Raises what the first to fail raised, when the others have let go."""
        self._failure = None
        threads = []
        for work in works:
            turn = threading.Semaphore(0)
            thread = threading.Thread(target=self._lane, args=(work, turn))
            thread.start()
            threads.append(thread)
            self._waiting.append(turn)
        self._pass_on()
        try:
            self._all_done.acquire()
        except BaseException as error:  # an interrupt: every run has to let go before it may leave
            self._failure = self._failure or error
            self._all_done.acquire()
        finally:
            for thread in threads:
                thread.join()
        if self._failure is not None:
            raise self._failure

    def pause(self) -> None:
        """Let every other run come here, or to its end, first."""
        turn = self._own.get(threading.get_ident())
        if turn is None:
            return
        self._waiting.append(turn)
        self._pass_on()
        turn.acquire()
        if self._failure is not None:
            raise _Abandoned

    def _lane(self, work: Callable[[], None], turn: threading.Semaphore) -> None:
        self._own[threading.get_ident()] = turn
        turn.acquire()
        try:
            if self._failure is None:
                work()
        except _Abandoned:
            pass
        except BaseException as error:  # kept, and raised where `run` was called
            self._failure = self._failure or error
        finally:
            del self._own[threading.get_ident()]
            self._pass_on()

    def _pass_on(self) -> None:
        (self._waiting.popleft() if self._waiting else self._all_done).release()
