"""Open a model by name, folder or run: compressed or not."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from umcompress.checkpoint.disk import CustomWeightLayout, DiskTensors, open_disk
from umcompress.documents.base import Component
from umcompress.documents.plan import CompressionRecord
from umcompress.documents.sampling import Sampling
from umcompress.errors import UsageError
from umcompress.models.family import Family
from umcompress.models.registry import find_family, resolve_folder
from umcompress.models.remote_code import code_files
from umcompress.models.runner import Runner
from umcompress.models.save import is_compressed, load_compressed, read_record
from umcompress.models.trainer import Trainer
from umcompress.rewrite.apply import shapes_only

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Source:
    """A model folder, its family, and how it is to be loaded."""

    name: str
    folder: Path
    family: Family
    dtype: str = "float32"
    device: str = "cpu"
    components: Mapping[str, Component] = field(default_factory=dict)
    trust_remote_code: bool = False
    sampling: Sampling = field(default_factory=Sampling)

    @property
    def own_code(self) -> tuple[str, ...]:
        """Python files of the folder that are run, as was consented to."""
        return code_files(self.folder) if self.trust_remote_code else ()

    @property
    def record(self) -> CompressionRecord | None:
        """The plans that the folder's model has been through, None for an unmodified one."""
        return read_record(self.folder) if is_compressed(self.folder) else None

    def load(self) -> nn.Module:
        """The model, with weights."""
        if is_compressed(self.folder):
            return load_compressed(self.folder, self.family, DTYPES[self.dtype], self.device)
        return self.family.load(self.folder, DTYPES[self.dtype], self.device)

    def skeleton(self) -> nn.Module:
        """The model's shapes; no weight is read."""
        model = self.family.skeleton(self.folder)
        if (record := self.record) is not None:
            shapes_only(model, self.family, record.plans)
        return model

    def runner(self, model: nn.Module) -> Runner:
        """Runs the model's tasks, painting as `sampling` says.  UsageError for settings that it does not have."""
        made = self.family.runner(model, self.folder)
        if given := self.sampling.given():
            settings: Any = made.settings  # each family has some of its own
            known = inspect.signature(settings).parameters
            if odd := sorted(given.keys() - known.keys()):
                raise UsageError(
                    f"sampling: {', '.join(odd)}", f"a model of the family {self.family.name} has no such setting",
                    f"it has {', '.join(known)}",
                )
            settings(**given)
        return made

    def trainer(self, model: nn.Module) -> Trainer:
        """Trains the model, on pictures of the size that `sampling` says.  ModelError where it cannot be trained."""
        return self.runner(model).trainer(self.family) if self.sampling.given() else self.family.trainer(
            model, self.folder
        )


def located(source: Source) -> tuple[nn.Module, DiskTensors]:
    """A skeleton, and where its tensors lie on disk; nothing is read but headers.  ModelError as `places_of`."""
    model = source.skeleton()
    return model, places_of(model, source)


def places_of(model: nn.Module, source: Source) -> DiskTensors:
    """Where the tensors of a skeleton of the source lie on disk; nothing is read but headers.

    ModelError where files are missing, or hold what only transformers can put together.
    """
    family = source.family
    if isinstance(family, CustomWeightLayout):
        return family.open_disk(model, source.folder)
    return open_disk(model, source.folder, family.weight_files(model))


def as_stored(model: nn.Module, disk: DiskTensors) -> None:
    """Give the parameters of a skeleton the dtypes that they have on disk."""
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(disk.dtype(name))


def open_source(
    model: str,
    dtype: str | None = None,
    device: str | None = None,
    components: Mapping[str, Component] | None = None,
    trust_remote_code: bool = False,
    sampling: Sampling | None = None,
) -> Source:
    """Find a model.  ModelError where there is none; UsageError where the device is not there.

    components: what its parts are for, where its family does not know; a compressed model remembers.
    trust_remote_code: consent to run Python code that comes with it. Nothing is ever asked or remembered.
    sampling: how it is to paint.
    """
    folder = resolve_folder(model, trust_remote_code)
    device = device or "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device {device}", "torch finds no CUDA device here", "leave --device out, or use cpu")
    family = find_family(folder)
    known = read_record(folder).components if is_compressed(folder) else {}
    if known and components is not None and dict(components) != known:
        raise UsageError(f"components of {model}", "it was compressed with others", "leave `components` out")
    if given := known or components:
        family = family.with_components(given)
    if trust_remote_code:
        family = family.trusting()
    return Source(
        model, folder, family, dtype or "float32", device, dict(given or {}), trust_remote_code, sampling or Sampling()
    )
