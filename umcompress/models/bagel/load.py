"""A BAGEL folder into a model: memory-mapped, strict, without a second copy."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from umcompress.checkpoint.fill import fill
from umcompress.checkpoint.layout import Part, Target
from umcompress.models.bagel.config import BagelConfig
from umcompress.models.bagel.experts import BagelExperts
from umcompress.models.bagel.model import Bagel

# file -> prefix of the module tensors that it holds; on disk the prefix is left out.
WEIGHT_FILES = {"ema.safetensors": "", "ae.safetensors": "vae."}


def skeleton(config: BagelConfig) -> Bagel:
    """The model with every parameter on the meta device."""
    with torch.device("meta"):
        return Bagel(config).eval()


def load_bagel(
    folder: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Bagel:
    """Load an official folder.

    Raises ModelError listing every missing, unexpected or wrongly shaped tensor.
    """
    model = skeleton(BagelConfig.from_folder(folder))
    assign_weights(model, folder, dtype, device)
    return model


def disk_names(model: nn.Module, apart: type[nn.Module] = BagelExperts) -> dict[str, dict[str, Target]]:
    """File -> name on disk -> tensor in the module, for every tensor of `model`.

    Experts that came from a BAGEL-MoE folder are stacked in memory and lie one by one on disk; so do those of
    all modules of the class `apart`.
    """
    homes = {path for path, module in model.named_modules() if isinstance(module, apart)}
    files: dict[str, dict[str, Target]] = {file: {} for file in WEIGHT_FILES}
    for name, tensor in model.state_dict(keep_vars=True).items():
        file = "ae.safetensors" if name.startswith("vae.") else "ema.safetensors"
        path, _, linear = name.partition(".experts.")
        if linear and path in homes:
            files[file] |= {f"{path}.experts.{e}.{linear}": Part(name, e) for e in range(len(tensor))}
        else:
            files[file][name.removeprefix(WEIGHT_FILES[file])] = name
    # A model that only understands has no autoencoder.
    return {file: names for file, names in files.items() if names}


def assign_weights(
    model: nn.Module, folder: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> None:
    """Fill a skeleton of any structure from the two weight files of `folder`, strictly.

    Tensors already of the wanted dtype stay views of the mapped file on the CPU, but for experts, which are
    stacked.  The autoencoder stays float32, as in the official code.
    """
    fill(model, folder, disk_names(model), dtype, device, kept={"ae.safetensors": torch.float32})
    model.eval()
