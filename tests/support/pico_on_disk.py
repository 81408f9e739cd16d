"""Pico models as files, and opened from them."""

from __future__ import annotations

from pathlib import Path

import torch
from pico import FAMILY, MODELS, write_config

from umcompress.documents.plan import CompressionRecord
from umcompress.models.save import save_compressed
from umcompress.models.source import Source
from umcompress.run.out_of_core import OnDisk, open_on_disk


def stored(kind: str, home: Path, dtype: torch.dtype = torch.float32) -> Path:
    model = MODELS[kind][0]().to(dtype)
    write_config(model, home)
    save_compressed(model, FAMILY, home / "whole", CompressionRecord(base="pico", family="pico"), source=home)
    (home / "whole" / "umcompress.json").unlink()
    return home / "whole"


def on_disk(folder: Path) -> OnDisk:
    return open_on_disk(Source("pico", folder, FAMILY))  # type: ignore[arg-type]
