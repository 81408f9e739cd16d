"""Names that all parts of the transformers family share: files of a folder, and the stack of a plain model."""

from __future__ import annotations

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
MAIN_STACK = "main"
