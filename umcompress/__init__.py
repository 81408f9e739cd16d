"""umcompress makes unified multimodal models smaller and faster, and shows what that costs.

The public face: `load` opens a model, compressed or not.  Importing this loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["load"]


def load(
    model: str | Path, dtype: str = "float32", device: str = "cpu", *, trust_remote_code: bool = False
) -> Any:
    """The model at `model`: a built-in name, a model folder, or the output folder of a run.

    Of a pipeline of diffusers the pipeline object, which paints; of any other model its module.
    trust_remote_code: run Python code that comes with it; without this a model that needs it is refused.
    Raises ModelError (a UsageError) where there is none, or its files are damaged.
    """
    from umcompress.models.source import open_source

    source = open_source(str(model), dtype, device, trust_remote_code=trust_remote_code)
    return source.family.opened(source.load(), source.folder)
