"""The check of a written model in the fork that runs a command: thousands of fresh processes would take hours."""

from __future__ import annotations

import contextlib
import io
import subprocess
import traceback

import pytest

from umcompress.run import verify, verify_changed
from umcompress.run.verify import FreshCheck


class Here(verify.FreshProcess):
    """No process: what it would do is done here."""

    def __init__(self) -> None:
        """Nothing to start."""

    def done(self, check: FreshCheck) -> subprocess.CompletedProcess[str]:
        out = io.StringIO()
        try:
            with contextlib.redirect_stdout(out):
                verify.carry_out(check)
        except Exception:  # as the fresh process ends with it
            return subprocess.CompletedProcess([], 1, out.getvalue(), traceback.format_exc())
        return subprocess.CompletedProcess([], 0, out.getvalue(), "")

    def end(self) -> None:
        """It has ended."""


def check_here(patch: pytest.MonkeyPatch) -> None:
    for module in (verify, verify_changed):
        patch.setattr(module, "FreshProcess", Here)
