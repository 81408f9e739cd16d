"""The check of a written model in the fork that runs a command: thousands of fresh processes would take hours."""

from __future__ import annotations

import contextlib
import io
import subprocess
import traceback

import pytest

from umcompress.run import verify
from umcompress.run.verify import FreshCheck


def _here(check: FreshCheck) -> subprocess.CompletedProcess[str]:
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            code = verify.main([check.model_dump_json()])
    except Exception:  # as the fresh process ends with it
        return subprocess.CompletedProcess([], 1, out.getvalue(), traceback.format_exc())
    return subprocess.CompletedProcess([], code, out.getvalue(), "")


def check_here(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verify, "_in_fresh_process", _here)
