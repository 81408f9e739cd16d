"""The check of a written model in a process forked from one that has imported the libraries and seen no model.

It starts from as little as `python -m umcompress.run.verify` does, without the seconds of importing torch and
transformers.  Tests of the command line start the real thing; so does a test that has changed what libraries read from
the environment when they are imported.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path

import pytest

from umcompress.models import stopwatch
from umcompress.run import verify, verify_changed
from umcompress.run.verify import FreshCheck

PRELOADED = [
    "torch", "transformers", "umcompress.run.verify", "umcompress.models.hf.family", "umcompress.models.bagel.family",
    "umcompress.run.apply", "umcompress.report.report_view",
]  # fmt: skip
# lm-eval sets these when it is imported; they are of downloads alone.
OF_DOWNLOADS = ("HF_XET_HIGH_PERFORMANCE", "HF_HUB_ENABLE_HF_TRANSFER")
READ_AT_IMPORT = ("HF_", "TRANSFORMERS_", "PYTHON", "TORCH_", "HOME", "XDG_")


def read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    """What libraries have read from the environment when they were imported; how many threads is said to each check."""
    return {
        name: value for name, value in environment.items()
        if name.startswith(READ_AT_IMPORT) and name not in OF_DOWNLOADS
    }  # fmt: skip


Started = verify.FreshProcess
AT_START = read_at_import(os.environ)


def _forked(argument: str, folder: str, environment: dict[str, str], current: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(current)
    with (
        Path(folder, "out").open("w") as out, Path(folder, "errors").open("w") as errors,
        contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors),
    ):  # fmt: skip
        try:
            verify.carry_out(FreshCheck.model_validate_json(argument))
            code = 0
        except Exception:  # as the interpreter ends with it
            traceback.print_exc()
            code = 1
    raise SystemExit(code)


def time_twice(patch: pytest.MonkeyPatch) -> None:
    """Has models timed twice only, until the patch is undone; tests/models/test_stopwatch.py has it as it is."""
    patch.setattr(stopwatch, "FEWEST", 2)
    patch.setattr(stopwatch, "MOST", 2)


def fork_checks(patch: pytest.MonkeyPatch) -> None:
    """Has every check run in a forked process, until the patch is undone."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)

    class Forked(Started):
        def __init__(self) -> None:
            """Nothing is started before it is known what for."""

        def done(self, check: FreshCheck) -> subprocess.CompletedProcess[str]:
            if read_at_import(os.environ) != AT_START:
                super().__init__()
                return super().done(check)
            with tempfile.TemporaryDirectory() as folder:
                arguments = (check.model_dump_json(), folder, dict(os.environ), str(Path.cwd()))
                process = context.Process(target=_forked, args=arguments)
                process.start()
                process.join()
                out, errors = (Path(folder, name) for name in ("out", "errors"))
                said = [file.read_text() if file.exists() else "" for file in (out, errors)]
                return subprocess.CompletedProcess([], process.exitcode or 0, *said)

        def end(self) -> None:
            """It has ended."""

    for module in (verify, verify_changed):
        patch.setattr(module, "FreshProcess", Forked)
