"""A command in a forked process, which can be killed at any place, kept from writing, or kept short of memory.

A fork has everything imported already, so that a command on a model of a few thousand weights takes milliseconds.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What the system is asked for that changes a folder, or opens a file in it.
EVENTS = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree", "write"})
ESCAPED = 70
Before = Callable[[], None]


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative: killed by that signal), and all that it said."""

    code: int
    said: str

    @property
    def escaped(self) -> bool:
        """Whether it ended otherwise than its exit codes promise."""
        return self.code not in (0, 1, 2, -signal.SIGKILL) or "Traceback (most" in self.said


def run(arguments: Sequence[str], before: Before | None = None, seconds: int = 120) -> Ended:
    """`umcompress ARGUMENTS` in a fork of this process; `before` is called in it first.

    seconds: of its own work, however busy the machine is; one that waits for ever is ended in the end, too.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()  # no file: those may be limited
    child = os.fork()
    if child == 0:
        code = ESCAPED
        try:
            os.close(reading)
            code = _command(arguments, before, writing, seconds)
        finally:
            os._exit(code)  # whatever happens: what the parent still has to do is not this process's
    os.close(writing)
    with os.fdopen(reading, "rb") as said:
        text = said.read().decode("utf-8", "replace")
    _, status = os.waitpid(child, 0)
    return Ended(os.waitstatus_to_exitcode(status), text)


def _command(arguments: Sequence[str], before: Before | None, said: int, seconds: int) -> int:
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    signal.alarm(20 * seconds)
    import torch

    from umcompress.cli.main import main

    torch.set_num_threads(1)  # a fork has not the threads of its parent

    try:
        if before is not None:
            before()
        code = main(list(arguments))
    except BaseException:  # what a campaign looks for
        traceback.print_exc()
        code = ESCAPED
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code


def at_event(place: Path, number: int, act: Callable[[str], None], log: Path | None = None) -> Before:
    """Do `act` when the system is asked for the `number`-th time for something in a folder; counted from 1.

    log: a file outside of the folder, which gets a line for each event.
    """
    def install() -> None:
        count, busy = 0, False
        lines = None if log is None else log.open("w", buffering=1)

        def seen(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count, busy
            if event not in EVENTS or busy or not any(_inside(place, part) for part in arguments[:2]):
                return
            count += 1
            if lines is not None:
                busy = True
                lines.write(f"{event} {arguments[0]}\n")
                busy = False
            if count == number:
                act(str(arguments[0]))

        _writes_in_halves(seen)
        sys.addaudithook(seen)

    return install


def _inside(place: Path, part: object) -> bool:
    return isinstance(part, str | Path) and str(part).startswith(str(place))


def _writes_in_halves(seen: Callable[[str, tuple[Any, ...]], None]) -> None:
    """Weights are written in two halves, with an event between them: a file may be cut anywhere."""
    from umcompress.checkpoint import writer

    write = writer._write

    def halves(stream: Any, data: memoryview) -> None:
        write(stream, data[: len(data) // 2])
        seen("write", (stream.name,))
        write(stream, data[len(data) // 2 :])

    writer._write = halves


def killed(_: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def disk_full(_: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_larger_files(size: int) -> Before:
    """No file may grow beyond `size` bytes, as under a quota."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def less_memory(more: int) -> Before:
    """At most `more` bytes beyond those that are taken."""
    def limit() -> None:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + more, resource.RLIM_INFINITY))

    return limit
