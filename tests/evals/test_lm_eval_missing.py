"""What there is of the evaluation `lm_eval` where lm-eval is not installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from umcompress.errors import UsageError
from umcompress.evals.text import lm_eval_tasks
from umcompress.evals.text.lm_eval_tasks import LmEval


def test_a_missing_lm_eval_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_eval_tasks, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"umcompress\[lm-eval\]"):
        LmEval(tasks=("scenes_choice",)).check()


def test_options_need_neither_torch_nor_lm_eval() -> None:
    code = (
        "import sys\nfrom umcompress.evals.text.lm_eval_tasks import LmEval\nimport umcompress.lm_eval\n"
        "LmEval.model_validate({'tasks': ['a', 'b']})\n"
        "heavy = {'torch', 'lm_eval', 'datasets', 'numpy'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
