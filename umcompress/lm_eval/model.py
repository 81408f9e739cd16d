"""The model `umcompress` of lm-eval.  Importing this loads lm-eval."""

from __future__ import annotations

from typing import Any

import torch

from umcompress.errors import UsageError
from umcompress.evals.text._lm import ForwardingLM, language_model
from umcompress.models.source import open_source


class Umcompress(ForwardingLM):
    """`--model umcompress --model_args pretrained=PATH`: any model that umcompress opens, compressed or not."""

    def __init__(
        self, pretrained: str = "", dtype: str | None = None, device: str | None = None,
        batch_size: int | str | None = None, max_batch_size: int | None = None,
        trust_remote_code: bool | None = False, **others: Any,
    ) -> None:  # fmt: skip
        if not pretrained or others:
            found = f"unknown: {', '.join(others)}" if others else "no pretrained"
            do = "give pretrained=PATH, dtype=, device=, trust_remote_code="
            raise UsageError("model_args of umcompress", found, do)
        if dtype not in (None, "float32", "bfloat16"):
            raise UsageError(f"model_args: dtype={dtype}", "it is unknown here", "use float32 or bfloat16")
        # lm-eval says cuda:0 where nobody has said anything; like its own models we take what there is.
        if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            device = "cpu"
        source = open_source(str(pretrained), dtype, device, trust_remote_code=trust_remote_code is True)
        super().__init__(language_model(source.runner(source.load()), _batch(batch_size)))


def _batch(asked: int | str | None) -> int | None:
    """None: the runner's own.  lm-eval gives 1 where nobody has said anything."""
    if asked is None or (isinstance(asked, str) and asked.startswith("auto")):
        return None
    return int(asked)
