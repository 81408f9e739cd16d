"""Calibration texts for out_of_core.py: 128 characters each, a token a character there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from umcompress.evals.text.perplexity import Perplexity


class Text(Perplexity):
    """Samples of 128 tokens from the text that the benchmark wrote."""

    name: ClassVar[str] = "text128"
    data: Path | None = Path(os.environ.get("BENCHMARK_TEXT", "text.txt"))
    sample_characters: int = 128
