"""Vision towers of models whose code came with them: nothing says how to call the whole model with a picture."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from umcompress.errors import ModelError
from umcompress.models.hf.inputs import picture
from umcompress.models.hf.load.own_code import errors_of


def towers(model: PreTrainedModel) -> list[tuple[str, PreTrainedModel]]:
    """Parts of a model that are models themselves and read pictures, the outermost ones."""
    found: list[tuple[str, PreTrainedModel]] = []
    for path, module in model.named_modules():
        if not path or not isinstance(module, PreTrainedModel) or any(path.startswith(f"{one}.") for one, _ in found):
            continue
        if "pixel_values" in inspect.signature(type(module).forward).parameters:
            found.append((path, module))
    return found


def features(tower: PreTrainedModel, folder: Path, place: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """What a tower gives of a ramp; nothing where it wants to be called otherwise."""
    pixels = picture(tower)
    if pixels is None:
        return {}
    try:
        with errors_of(folder):
            out: Any = tower(**{name: place(value) for name, value in pixels.items()})
    except ModelError:
        return {}
    return out if isinstance(out, dict) else {"features": out}
