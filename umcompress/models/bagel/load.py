"""A BAGEL folder into a model: memory-mapped, strict, without a second copy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from umcompress.checkpoint.fill import aligned
from umcompress.errors import ModelError
from umcompress.models.bagel.config import BagelConfig
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


def disk_names(model: nn.Module) -> dict[str, dict[str, str]]:
    """File -> name on disk -> name in the module, for every tensor of `model`."""
    files: dict[str, dict[str, str]] = {file: {} for file in WEIGHT_FILES}
    for name in model.state_dict():
        file = "ae.safetensors" if name.startswith("vae.") else "ema.safetensors"
        files[file][name.removeprefix(WEIGHT_FILES[file])] = name
    return files


def assign_weights(
    model: nn.Module, folder: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> None:
    """Fill a skeleton of any structure from the two weight files of `folder`, strictly.

    Tensors already of the wanted dtype stay views of the mapped file on the CPU.  The autoencoder stays
    float32, as in the official code.
    """
    problems: list[str] = []
    found: dict[str, Tensor] = {}
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for file, names in disk_names(model).items():
        path = folder / file
        if not path.exists():
            problems.append(f"no {file}")
            continue
        wanted = torch.float32 if file == "ae.safetensors" else dtype
        try:
            found |= _read(path, names, shapes, wanted, device, problems)
        except (SafetensorError, OSError) as error:
            problems.append(f"{file}: unreadable ({error})")
    if problems:
        raise ModelError(
            asked=f"the weights of the model in {folder}", found="\n    ".join(problems),
            do="fetch the folder again, or check that its configuration belongs to these weights",
        )
    model.load_state_dict(found, strict=True, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.dtype.is_floating_point)
    for name, parameter in model.named_parameters():
        if name.endswith("pos_embed.pos_embed"):
            parameter.requires_grad_(False)
    model.eval()


def _read(
    path: Path,
    names: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    device: torch.device | str,
    problems: list[str],
) -> dict[str, Tensor]:
    found = {}
    with safe_open(path, framework="pt") as file:
        stored = set(file.keys())
        problems += [f"{path.name}: missing {name}" for name in sorted(names.keys() - stored)]
        problems += [f"{path.name}: unexpected {name}" for name in sorted(stored - names.keys())]
        for name in sorted(names.keys() & stored):
            shape = tuple(file.get_slice(name).get_shape())
            if shape != shapes[names[name]]:
                problems.append(f"{path.name}: {name} is {list(shape)}, expected {list(shapes[names[name]])}")
            elif not problems:
                found[names[name]] = aligned(file.get_tensor(name).to(device=device, dtype=dtype))
    return found
