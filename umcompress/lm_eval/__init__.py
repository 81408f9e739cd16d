"""lm-eval and umcompress: our models under the name `umcompress` in lm-eval, and tasks that are shipped.

`python -m umcompress.lm_eval ...` is lm-eval's own command line, which then knows both.  Importing this loads neither
torch nor lm-eval.
"""

from __future__ import annotations

from pathlib import Path

from umcompress.evals.text.lm_eval_tasks import require

MODEL = "umcompress"
TASKS = Path(__file__).parent / "packaged"


def register() -> None:
    """Let lm-eval know the model `umcompress`; nothing of it is imported before it is asked for."""
    require("lm-eval")
    # First lm-eval's own: it takes a registry that holds any model for a full one.
    import lm_eval.models  # noqa: F401
    from lm_eval.api.registry import model_registry

    if MODEL not in model_registry:
        model_registry.register(MODEL, target="umcompress.lm_eval.model:Umcompress")
