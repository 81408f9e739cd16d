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
    """One that runs; `kill` and `wait` as those of a process that was started.

    Where a test or a library has set something that libraries read when they are imported, it is started for real.
    """

    def __init__(
        self, *arguments: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        """environment: what is set beside what this process has."""
        self.arguments, self._folder = arguments, tempfile.TemporaryDirectory()
        changed, current = {**os.environ, **(environment or {})}, str(cwd or Path.cwd())
        self._process: multiprocessing.process.BaseProcess | None = None
        self._started: subprocess.Popen[bytes] | None = None
        if read_at_import(changed) != AT_START:
            whole = [sys.executable, "-m", "umcompress", *arguments]
            folder = Path(self._folder.name)
            with (folder / "out").open("wb") as out, (folder / "errors").open("wb") as errors:
                self._started = subprocess.Popen(
                    whole, cwd=current, env=changed, stdout=out, stderr=errors, start_new_session=True
                )
            return
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._process = context.Process(target=_command, args=(arguments, current, changed, self._folder.name))
        self._process.start()

    @property
    def is_real(self) -> bool:
        """Whether a process was started, and not forked."""
        return self._started is not None

    def kill(self) -> None:
        running = self._process or self._started
        assert running is not None and running.pid is not None
        with contextlib.suppress(ProcessLookupError):  # it may have come to its end
            os.killpg(running.pid, signal.SIGKILL)

    def wait(self, seconds: float = 600) -> subprocess.CompletedProcess[str]:
        said = f"{' '.join(self.arguments)}: still running after {seconds:.0f} s"
        if self._started is not None:
            code: int | None = self._started.wait(seconds)
        else:
            assert self._process is not None
            self._process.join(seconds)
            code = self._process.exitcode
        assert code is not None, said
        files = [Path(self._folder.name, name) for name in ("out", "errors")]
        texts = [file.read_text(encoding="utf-8") if file.exists() else "" for file in files]
        self._folder.cleanup()
        return subprocess.CompletedProcess(list(self.arguments), code, *texts)


def command(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run one to its end."""
    return Command(*arguments, cwd=cwd).wait()
