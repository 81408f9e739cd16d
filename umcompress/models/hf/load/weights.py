"""Names and layout on disk are not those of the module: transformers renames, stacks and splits tensors on loading.

Its own conversions are used both ways, so that a folder that it wrote is read as it reads it, and what is written is
what it would write. Checks run the same conversions on shapes from the files' headers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from umcompress.checkpoint.disk import DTYPES, DiskTensors, FileTensor, OpenFiles, with_tied
from umcompress.checkpoint.fill import aligned
from umcompress.checkpoint.index import StoredTensors, open_folder, shards_of
from umcompress.checkpoint.layout import tied_names
from umcompress.checkpoint.recorder import CannotReplay, Recorder
from umcompress.checkpoint.writer import NAMES, TensorToWrite, in_memory, in_parts
from umcompress.errors import ModelError
from umcompress.models.hf.load.skeleton import kept_float32
from umcompress.models.hf.load.unused import in_words, unused
from umcompress.models.hf.names import WEIGHTS

Read = Callable[[str], Tensor]


@dataclass
class _Group:
    """Tensors on disk that together make one tensor of the module, or several."""

    # A WeightRenaming or a WeightConverter: what both can do is not in their base class.
    transform: Any
    names: list[tuple[str, str, str]]


class WeightLayout:
    """How the tensors of some files become those of a model."""

    def __init__(self, model: PreTrainedModel, names: Iterable[str]) -> None:
        self.model = model
        self.conversions: list[WeightTransform] = get_model_conversion_mapping(model)
        self.groups: dict[str, _Group] = {}
        self.unexpected: list[str] = []
        # Of the files, what the model has no use for: read by none, and in no result.
        self.left_aside: list[str] = []
        renamings = [entry for entry in self.conversions if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in self.conversions if isinstance(entry, WeightConverter)]
        self._converters = {pattern: entry for entry in converters for pattern in entry.source_patterns}
        state, prefix = model.state_dict(keep_vars=True), model.base_model_prefix
        for disk in sorted(names, key=dot_natural_key):
            name, pattern = rename_source_key(disk, renamings, converters, prefix, state)
            if name not in state and disk in state:
                name, pattern = rename_source_key(disk, [], [], prefix, state)
            if name in state:
                self._add(disk, name, pattern)
            elif unused(model, name):
                self.left_aside.append(disk)
            else:
                self.unexpected.append(disk)

    def _add(self, disk: str, name: str, pattern: str | None) -> None:
        if name not in self.groups:
            fresh = WeightRenaming(disk, name) if pattern is None else copy.deepcopy(self._converters[pattern])
            self.groups[name] = _Group(fresh, [])
        self.groups[name].names.append((disk, name, pattern if pattern is not None else disk))

    def targets(self) -> set[str]:
        """Module tensors that the files have something for, as far as names tell."""
        return set(self.groups)

    def tensors(self, read: Read) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the module, made from what `read` gives for names on disk."""
        for name, group in self.groups.items():
            if isinstance(group.transform, WeightRenaming):
                yield name, read(group.names[-1][0])
                continue
            for disk, target, pattern in group.names:
                group.transform.add_tensor(target, disk, pattern, read(disk))
            made = group.transform.convert(name, model=self.model, config=self.model.config)
            for target, value in made.items():
                yield target, value[0] if isinstance(value, list) else value

    def used(self) -> list[WeightTransform]:
        """The conversions that these files needed: writing undoes just those."""
        return [entry for entry in self.conversions if entry.was_used()]


# What weights are stored in that are computed with as they are.
COMPUTED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def problems(model: PreTrainedModel, folder: Path) -> list[str]:
    """What is missing, unexpected or wrongly shaped in a folder's weights, by the files' headers."""
    stored = _open(folder)
    layout = WeightLayout(model, stored.entries)
    state = model.state_dict(keep_vars=True)
    wanted = {name: tuple(tensor.shape) for name, tensor in state.items()}
    try:
        made = dict(layout.tensors(lambda disk: _shape(stored, disk)))
    except (RuntimeError, ValueError) as error:
        return [f"{WEIGHTS}: {str(error).splitlines()[0]}"]
    found = {name: tuple(tensor.shape) for name, tensor in made.items()}
    absent = wanted.keys() - found.keys() - _tied_to_found(model, found)
    listed = [f"{WEIGHTS}: missing {name}" for name in sorted(absent)]
    listed += [f"{WEIGHTS}: unexpected {name}" for name in sorted(layout.unexpected)]
    for name in sorted(wanted.keys() & found.keys()):
        if wanted[name] != found[name]:
            listed.append(f"{WEIGHTS}: {name} is {list(found[name])}, expected {list(wanted[name])}")
        elif state[name].is_floating_point() and made[name].dtype not in COMPUTED:
            listed.append(f"{WEIGHTS}: {name} is stored as {NAMES[made[name].dtype]}, as quantized weights are")
    return listed


def fill(model: PreTrainedModel, folder: Path, dtype: torch.dtype, device: str) -> None:
    """Give a skeleton of any structure its tensors. ModelError that lists all that does not fit."""
    raise_problems(model, folder)
    float32, tied = kept_float32(model, dtype), tied_names(model)
    with _open(folder) as stored:
        layout = WeightLayout(model, stored.entries)
        for name, tensor in layout.tensors(stored.read):
            wanted = torch.float32 if name in float32 else dtype
            value = tensor.to(device, wanted if tensor.is_floating_point() else tensor.dtype)
            _assign(model, tied.get(name, name), aligned(value))
    for name, first in tied.items():
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, model.get_parameter(first))
    _remember_conversions(model, layout)
    nn.Module.to(model, device)


def left_aside(model: PreTrainedModel, folder: Path) -> list[str]:
    """In words, which tensors of a folder's files the model has no use for."""
    if not shards_of(folder, WEIGHTS)[0].is_file():
        return []
    with _open(folder) as stored:
        return in_words(model, WeightLayout(model, stored.entries).left_aside)


def raise_problems(model: PreTrainedModel, folder: Path) -> None:
    """ModelError that lists all of a folder's weights that does not fit."""
    if listed := problems(model, folder):
        more = f"\n    and {len(listed) - 40} more" if len(listed) > 40 else ""
        raise ModelError(
            f"load the weights of the model in {folder}", "\n    ".join(listed[:40]) + more,
            "get the folder again, or check that its configuration belongs to these weights",
        )  # fmt: skip


def names_on_disk(model: PreTrainedModel) -> dict[str, str]:
    """Name on disk -> name in the module; a tensor that is cut up on disk goes by its own name."""
    state = {name: tensor.detach().to("meta") for name, tensor in model.state_dict(keep_vars=True).items()}
    of = {id(tensor): name for name, tensor in state.items()}
    # A conversion that only renames hands on the same object.
    on_disk = revert_weight_conversion(model, state).items()
    names = {disk: of[id(tensor)] for disk, tensor in on_disk if id(tensor) in of}
    return names | {name: name for name in state.keys() - set(names.values())}


def sources(model: PreTrainedModel, values: Mapping[str, TensorToWrite] | None = None) -> dict[str, TensorToWrite]:
    """What to write: name on disk -> tensor. Tied parameters are stored once. values: the tensors of a skeleton."""
    tied = tied_names(model)
    if values is not None:
        return _recorded_sources(model, {name: source for name, source in values.items() if name not in tied})
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    return {disk: in_memory(tensor) for disk, tensor in revert_weight_conversion(model, state).items()}


def _recorded_sources(model: PreTrainedModel, values: Mapping[str, TensorToWrite]) -> dict[str, TensorToWrite]:
    recorder = Recorder()
    state = {name: recorder.watch(source.parts) for name, source in values.items() if source.parts is not None}
    assert state.keys() == values.keys()
    with _explaining_conversions(recorder, "write"):
        on_disk = revert_weight_conversion(model, state)
    return {disk: in_parts(recorder.made(tensor)) for disk, tensor in on_disk.items()}


def open_disk(model: PreTrainedModel, folder: Path) -> DiskTensors:
    """Where the tensors of a model lie; what conversions make of several is made when a part of it is asked for."""
    raise_problems(model, folder)
    files, stored, recorder = OpenFiles(), _open(folder), Recorder()
    with _explaining_conversions(recorder, "read"):
        layout = WeightLayout(model, stored.entries)
        found = dict(layout.tensors(lambda disk: recorder.watch(FileTensor(stored.entry(disk), files))))
    places = {name: recorder.made(tensor) for name, tensor in found.items()}
    return DiskTensors(with_tied(places, tied_names(model)), files)


@contextmanager
def _explaining_conversions(recorder: Recorder, verb: str) -> Iterator[None]:
    try:
        with recorder:
            yield
    except (CannotReplay, RuntimeError) as error:
        found = f"transformers converts them otherwise: {str(error).splitlines()[0]}"
        raise ModelError(
            f"{verb} the weights a tensor at a time", found,
            "leave --out-of-core out: the model is then loaded as a whole",
        ) from None


def fit_to_stored_names(model: PreTrainedModel, folder: Path) -> None:
    """Fit a skeleton to the names in a folder's weight files, where there are any.

    Writing gives them back; and parameters that the configuration ties but the files store apart, with other
    values, become their own. transformers loads such a folder the same way, with a warning.
    """
    if not shards_of(folder, WEIGHTS)[0].is_file():
        return
    with _open(folder) as stored:
        layout = WeightLayout(model, stored.entries)
        _remember_conversions(model, layout)
        on_disk = {name: group.names[-1][0] for name, group in layout.groups.items()}
        untied = list(_other_values(model, on_disk, stored.read))
    for name, first in untied:
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, nn.Parameter(torch.empty_like(model.get_parameter(first))))
        model.all_tied_weights_keys.pop(name, None)
    if untied and not tied_names(model):
        # What stays tied is tied because this is set (T5's two embeddings, where only its head is apart).
        model.config.tie_word_embeddings = False
        model.config.get_text_config().tie_word_embeddings = False


def _other_values(model: Any, on_disk: Mapping[str, str], read: Read) -> Iterator[tuple[str, str]]:
    """(name, first name) of parameters that are one in the model, where a file has other values for this name.

    Other than those of the first name that the files have, in the order in which transformers looks for it.
    """
    groups: dict[str, list[str]] = {}
    for name, first in tied_names(model).items():
        groups.setdefault(first, []).append(name)
    order = list(model.all_tied_weights_keys)
    for first, names in groups.items():
        ranked = sorted(names, key=lambda name: order.index(name) if name in order else len(order))
        stored = [name for name in (first, *ranked) if name in on_disk]
        for name in stored[1:]:
            apart = on_disk[name] != on_disk[stored[0]]
            if apart and not torch.equal(read(on_disk[name]), read(on_disk[stored[0]])):
                yield name, first


def _remember_conversions(model: Any, layout: WeightLayout) -> None:
    """What transformers itself looks at when it saves."""
    model._weight_conversions = layout.used() or None


def _open(folder: Path) -> StoredTensors:
    if not shards_of(folder, WEIGHTS)[0].is_file():
        raise ModelError(
            f"load the weights of the model in {folder}", f"no {WEIGHTS} and no {WEIGHTS}.index.json",
            "save the model as safetensors (save_pretrained of transformers does)",
        )  # fmt: skip
    return open_folder(folder, WEIGHTS)


def _shape(stored: StoredTensors, disk: str) -> Tensor:
    entry = stored.entry(disk)
    return torch.empty(entry.shape, dtype=DTYPES.get(entry.dtype, torch.float32), device="meta")


def _tied_to_found(model: PreTrainedModel, found: Iterable[str]) -> set[str]:
    """Names that need no tensor of their own: one that they are tied to is there."""
    tied, there = tied_names(model), set(found)
    same: dict[str, set[str]] = {}
    for name, first in tied.items():
        same.setdefault(first, {first}).add(name)
    return {name for names in same.values() if names & there for name in names}


def _assign(model: nn.Module, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    old = getattr(owner, leaf)
    setattr(owner, leaf, nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value)
