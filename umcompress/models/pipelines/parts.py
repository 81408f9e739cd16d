"""The parts of a pipeline: how each is built as a skeleton, and what its weight file is called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from umcompress.documents.base import Component
from umcompress.documents.files import read_json
from umcompress.errors import ModelError
from umcompress.models.hf.family import TransformersFamily
from umcompress.models.hf.load.skeleton import CONFIG_ERRORS, config_file, parameters_on_meta
from umcompress.models.pipelines.index import Part, PipelineIndex

WEIGHTS = "diffusion_pytorch_model.safetensors"


class PipelineModel(nn.Module):
    """The parts of a pipeline that have weights, as children by the names that its index gives them.

    folder: where its tokenizers and schedulers lie.
    """

    def __init__(
        self, index: PipelineIndex, parts: Mapping[str, nn.Module], stacks: Mapping[str, str], folder: Path
    ) -> None:
        super().__init__()
        self.index, self.stacks, self.folder = index, dict(stacks), folder
        for name, module in parts.items():
            self.add_module(name, module)

    def of(self, part: Part) -> Any:
        """The module of a part."""
        return self.get_submodule(part.name)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


def text_family(component: Component) -> TransformersFamily:
    """The family of a part that is a model of transformers: all of it serves one component."""
    return TransformersFamily({"*": component})


def build_part(part: Part, folder: Path, component: Component) -> nn.Module:
    """The skeleton of a part: parameters on the meta device, buffers real.  ModelError."""
    if part.library == "transformers":
        return text_family(component).skeleton(folder / part.name)
    import diffusers

    file = config_file(folder / part.name)
    cls: Any = getattr(diffusers, part.kind, None)
    if cls is None:
        raise ModelError(
            f"build the part {part.name} of {folder}", f"diffusers {diffusers.__version__} has no class {part.kind}",
            "install a version of diffusers that has it",
        )
    try:
        return build_diffusers(cls, read_json(file))
    except CONFIG_ERRORS as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise ModelError(f"build the model of {file}", lines[0][:300], "check the configuration") from error


def build_diffusers(cls: Any, config: Mapping[str, Any]) -> nn.Module:
    """A model of diffusers as its configuration says, parameters on the meta device."""
    with parameters_on_meta():
        model: nn.Module = cls.from_config(dict(config))
    return model.eval()


def kept_float32(module: nn.Module, dtype: torch.dtype) -> set[str]:
    """Tensors of a model of diffusers that stay float32 although it is loaded as `dtype`."""
    named = getattr(module, "_keep_in_fp32_modules", None) or ()
    if dtype == torch.float32:
        return set()
    return {name for name in module.state_dict(keep_vars=True) if any(part in name.split(".") for part in named)}
