"""`python -m umcompress ...` in a process forked from one that has imported the libraries and seen no model.

What a command reads, writes, prints and exits with is its own, as if it had been started; the seconds of importing
torch and transformers are spent once for all of them.  Some tests start the real thing: test_e2e.py, test_cli_light.py.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from forked_check import AT_START, PRELOADED, fork_checks, read_at_import, time_twice

from umcompress.cli.main import main


def _command(arguments: Sequence[str], current: str, environment: Mapping[str, str], folder: str) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(current)
    for number, name in ((1, "out"), (2, "errors")):
        file = os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    if threads := environment.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    # Its check is forked from where it was forked itself; what is timed, is timed twice.
    patch = pytest.MonkeyPatch()
    fork_checks(patch)
    time_twice(patch)
    sys.exit(main(arguments))


class Command:
    """One that runs; `kill` and `wait` as those of a process that was started."""

    def __init__(
        self, *arguments: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        """environment: what is set beside what this process has."""
        self.arguments, self._folder = arguments, tempfile.TemporaryDirectory()
        changed = {**os.environ, **(environment or {})}
        assert read_at_import(changed) == AT_START, "what libraries read when they are imported needs a real process"
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        given = (arguments, str(cwd or Path.cwd()), changed, self._folder.name)
        self._process = context.Process(target=_command, args=given)
        self._process.start()

    def kill(self) -> None:
        assert self._process.pid is not None
        with contextlib.suppress(ProcessLookupError):  # it may have come to its end
            os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self, seconds: float = 600) -> subprocess.CompletedProcess[str]:
        self._process.join(seconds)
        assert self._process.exitcode is not None, f"{' '.join(self.arguments)}: still running after {seconds:.0f} s"
        files = [Path(self._folder.name, name) for name in ("out", "errors")]
        said = [file.read_text(encoding="utf-8") if file.exists() else "" for file in files]
        self._folder.cleanup()
        return subprocess.CompletedProcess(list(self.arguments), self._process.exitcode, *said)


def command(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run one to its end."""
    return Command(*arguments, cwd=cwd).wait()
