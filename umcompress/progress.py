"""Progress for people, on stderr: a line with the time since the start, or a bar with the time that is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from umcompress import processes

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

_STARTED = time.monotonic()
# Displays that wait to hear how many of what are through, the innermost last; and bars on the terminal.
_HEARING: list[Progress] = []
_BARS: list[Bar] = []
EVERY = 15.0  # seconds between lines where there is no terminal for a bar


def say(text: str) -> None:
    """`[m:ss] text`; results go to stdout and are not mixed with this.  Of several processes the first speaks."""
    if (speaker := processes.speaker()) is None:
        return
    minutes, seconds = divmod(int(time.monotonic() - _STARTED), 60)
    line = f"{minutes:3d}:{seconds:02d}  {speaker}{text}"
    if _BARS:  # above it
        _BARS[-1].console.print(line, markup=False, highlight=False, soft_wrap=True)
    else:
        print(line, file=sys.stderr, flush=True)


def passed(unit: str, count: int = 1) -> None:
    """So many more are through.  From deep in the work to the display of that unit, where `counting` shows one."""
    for display in reversed(_HEARING):
        if display.unit == unit:
            display.advance(count)
            return


@contextmanager
def counting(label: str, unit: str, total: int, say: Callable[[str], None], headed: bool = False) -> Iterator[Progress]:
    """Show how many of `total` are through, as `passed` is told by what runs inside."""
    with Progress(label, unit, total, 0, say, headed=headed) as display:
        _HEARING.append(display)
        try:
            yield display
        finally:
            _HEARING.remove(display)


class Remaining:
    """Estimates the remaining seconds from the pace of this run.

    Items that were on disk already say nothing about the pace, nor does the first chunk, which warms up: until
    a second one is done nothing is claimed.
    """

    def __init__(self, total: int, done: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.done, self._clock = total, done, clock
        self._since: tuple[float, int] | None = None

    def advance(self, count: int) -> None:
        self.done += count
        if self._since is None:
            self._since = (self._clock(), self.done)

    def seconds(self) -> float | None:
        if self._since is None or self.done == self._since[1]:
            return None
        started, before = self._since
        return (self._clock() - started) / (self.done - before) * (self.total - self.done)


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


class Progress:
    """A bar on a terminal, a line now and then elsewhere.  Only the first process shows one.

    headed: whether a line says at the start what is to be done.
    """

    def __init__(
        self, label: str, unit: str, total: int, done: int, say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic, headed: bool = True,
    ) -> None:
        self.label, self.unit, self._say, self._clock, self._headed = label, unit, say, clock, headed
        self.remaining = Remaining(total, done, clock)
        self._resumed = done
        self._told = clock()
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        kept = f" ({self._resumed} done before)" if self._resumed else ""
        if processes.rank() == 0:
            if self._headed:
                self._say(f"{self.label}: {self.remaining.total} {self.unit}{kept}{_others()}")
            if sys.stderr.isatty():
                self._open()
        return self

    def _open(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        words, left = TextColumn("{task.description}"), TextColumn("{task.fields[left]}")
        self._bar = Bar(
            words, BarColumn(), MofNCompleteColumn(), left, console=Console(stderr=True), transient=True
        )
        self._task = self._bar.add_task(self.label, total=self.remaining.total, completed=self._resumed, left="")
        self._bar.start()
        _BARS.append(self._bar)

    def advance(self, count: int, note: str = "") -> None:
        """`count` more are done.  note: a few words about the last one, such as its losses."""
        self.remaining.advance(count)
        if processes.rank() != 0:
            return
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.remaining.done, left=_joined(self._left(), note))
        elif self._clock() - self._told >= EVERY and self.remaining.done < self.remaining.total:
            self._told = self._clock()
            done = f"{self.remaining.done} of {self.remaining.total} {self.unit}"
            self._say(f"{self.label}: {_joined(done, self._left(), note)}")

    def reach(self, done: int) -> None:
        """At least so many are done, whatever was told on the way."""
        if done > self.remaining.done:
            self.advance(done - self.remaining.done)

    def _left(self) -> str:
        seconds = self.remaining.seconds()
        return "" if seconds is None else f"about {duration(seconds)} left"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            _BARS.remove(self._bar)


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _others() -> str:
    count = processes.world()
    return f", this process's share of {count}" if count > 1 else ""
