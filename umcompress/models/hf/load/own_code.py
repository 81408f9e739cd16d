"""Code that comes with a model, run with consent: classes by transformers' dynamic modules, errors that name the file.

Such code may raise anything, so everything is caught, but only around calls into it or where it is in the
traceback. Code for transformers 4 is adapted where that cannot change what it computes.
"""

from __future__ import annotations

import copy
import inspect
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import dynamic_module_utils as dynamic
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto.auto_factory import add_generation_mixin_to_remote_model
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from umcompress.errors import ModelError, UmcompressError
from umcompress.models import remote_code as code

_CONSENT, _MENDED = "umcompress_runs_own_code", "umcompress_mended"
_TASKS = (
    "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForVision2Seq", "AutoModelForMultimodalLM",
    "AutoModelForSeq2SeqLM", "AutoModel",
)  # fmt: skip
# Where the code of umcompress is, and the file name of the code of lowered blocks.
_OURS, _LOWERED = str(Path(__file__).parents[3]), "<lowered "
# Libraries, whose frames say nothing about who called them. "<": modules that are frozen into Python.
_LIBRARIES = (*(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")), "<")


def mark_trusted(model: nn.Module) -> None:
    """Remember, on the model in memory and nowhere else, that what belongs to its folder may run code."""
    setattr(model, _CONSENT, True)


def is_trusted(model: nn.Module) -> bool:
    """Whether tokenizer and processor of the model may run the code of its folder."""
    return bool(getattr(model, _CONSENT, False))


def own_config(content: dict[str, Any], file: Path, trust: bool) -> PreTrainedConfig | None:
    """The configuration `content` of `file` by the folder's own class; None where that is not wanted or not given.

    ModelError where there is no other class, and no consent.
    """
    reference = _map(content).get("AutoConfig")
    if not isinstance(reference, str):
        return None
    if not trust:
        if content.get("model_type") in CONFIG_MAPPING:
            return None
        raise code.untrusted_code(file.parent, "the model")
    cls = _own_class(reference, file.parent)
    with errors_of(file.parent):
        config: PreTrainedConfig = cls.from_pretrained(file)
    return config


def own_model_class(config: PreTrainedConfig, folder: Path) -> type[PreTrainedModel] | None:
    """The class in the folder's code for the configuration's architecture, else for the first task there is."""
    references = _models(getattr(config, code.MAP, None))
    named = config.architectures or ()
    reference = next((found for found in references if found.rpartition(".")[2] in named), None)
    if reference is None and not references:
        return None
    found: Any = _own_class(reference or references[0], folder)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise _failed(folder, f"{reference or references[0]} is no model of transformers")
    made: type[PreTrainedModel] = add_generation_mixin_to_remote_model(found)  # type: ignore[no-untyped-call]
    return made


def has_model(config: PreTrainedConfig) -> bool:
    """Whether the folder's code has a class for the model."""
    return bool(_models(getattr(config, code.MAP, None)))


def _map(content: dict[str, Any]) -> dict[str, Any]:
    found = content.get(code.MAP)
    return found if isinstance(found, dict) else {}


def _models(found: Any) -> list[str]:
    mapping = found if isinstance(found, dict) else {}
    return [mapping[task] for task in _TASKS if isinstance(mapping.get(task), str)]


def _own_class(reference: str, folder: Path) -> Any:
    code.require_local_code(folder)
    if len(reference.split(".")) != 2:
        raise _failed(folder, f"{reference!r} in {code.MAP} is not module.Class")
    with errors_of(folder):
        return get_class_from_dynamic_module(reference, str(folder), local_files_only=True)


# -- errors ---------------------------------------------------------------------------------------------------


@contextmanager
def errors_of(folder: Path, only_inside: bool = False) -> Iterator[None]:
    """Whatever the folder's code raises, as a ModelError with its place.

    only_inside: the call runs code of ours, too, whose errors stay what they are.
    """
    try:
        yield
    except UmcompressError:
        raise
    except (Exception, SystemExit) as error:  # the code is somebody else's and may raise anything at all
        place = _place_in_model_code(error)
        if only_inside and place is None:
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        kind = "it ends the process: SystemExit" if isinstance(error, SystemExit) else type(error).__name__
        said = f"{kind}: {' '.join(lines[:2])[:300]}" if lines else kind
        raise _failed(folder, f"{place}: {said}" if place else said) from error


def guarded(runner: Any, folder: Path) -> Any:
    """A runner or trainer whose model runs code of its own: what that raises becomes a ModelError."""
    cls = type(runner)
    # All that it offers, so that nothing is forgotten when a runner learns something new.
    members = {name: inspect.getattr_static(cls, name) for name in dir(cls) if not name.startswith("_")}
    body: dict[str, Any] = {
        name: _guarding(member, folder) for name, member in members.items() if isinstance(member, FunctionType)
    }
    body |= {
        name: property(_guarding(member.fget, folder)) for name, member in members.items()
        if isinstance(member, property) and member.fget is not None
    }
    runner.__class__ = type(cls.__name__, (cls,), {**body, "__module__": cls.__module__})
    return runner


def _guarding(method: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    @wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        with errors_of(folder, only_inside=True):
            return method(*args, **kwargs)

    return run


def _failed(folder: Path, found: str) -> ModelError:
    return ModelError(
        f"run the code that comes with the model in {folder}", found,
        "install what it needs, or ask its authors for code that this version of transformers runs",
    )  # fmt: skip


def _place_in_model_code(error: BaseException) -> str | None:
    """File and line in the model's code, where that or a library that it called raised; None where others did."""
    theirs: str = dynamic.HF_MODULES_CACHE  # type: ignore[attr-defined]
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith((_OURS, _LOWERED, theirs)) or not frame.filename.startswith(_LIBRARIES)
    ]  # fmt: skip
    if not frames or not frames[-1].filename.startswith(theirs):
        return None
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}"


# -- code for transformers 4 ----------------------------------------------------------------------------------


@contextmanager
def tied_weights_as_lists() -> Iterator[None]:
    """Models built inside may list their tied weights; transformers 5 wants to know what each is tied to."""
    expanded = PreTrainedModel.get_expanded_tied_weights_keys

    def told(self: PreTrainedModel, all_submodels: bool = False) -> dict[str, str]:
        keys: Any = self._tied_weights_keys
        if isinstance(keys, list | tuple | set):
            self._tied_weights_keys = _tied_to(self, [str(key) for key in keys])
        return dict(expanded(self, all_submodels))

    PreTrainedModel.get_expanded_tied_weights_keys = told  # type: ignore[method-assign]
    try:
        yield
    finally:
        PreTrainedModel.get_expanded_tied_weights_keys = expanded  # type: ignore[method-assign]


def repair_constructor(model: PreTrainedModel) -> None:
    """Do what its constructor left out; note on the model why transformers by itself would not load it."""
    mended = []
    if not hasattr(model, "all_tied_weights_keys"):
        model.post_init()  # type: ignore[no-untyped-call]
        mended.append("its constructor does not call post_init")
    if isinstance(type(model)._tied_weights_keys, list | tuple | set) and model.config.tie_word_embeddings:
        mended.append("it lists tied weights without saying what each is tied to")
    setattr(model, _MENDED, tuple(mended))


def why_transformers_fails(model: nn.Module) -> tuple[str, ...]:
    """Why transformers by itself does not load the model's code."""
    found: tuple[str, ...] = getattr(model, _MENDED, ())
    return found


def unset_buffers(model: PreTrainedModel, config: PreTrainedConfig) -> list[str]:
    """Buffers that transformers by itself would leave as memory happens to be.

    It builds models without values and gives buffers that are in no file theirs in `_init_weights`, or not at all;
    transformers 4 kept what constructors had computed. Found by doing the same with a model of `config`.
    """
    computed = {
        (path, name): buffer
        for path, module in model.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name in module._non_persistent_buffers_set
    }
    if not computed:
        return []
    with errors_of(Path(str(model.config.name_or_path)).parent), tied_weights_as_lists(), torch.device("meta"):
        twin = type(model)(copy.deepcopy(config))
    for parameter in (*twin.parameters(), *twin.buffers()):
        parameter._is_hf_initialized = True  # type: ignore[attr-defined]
    for (path, name), buffer in computed.items():
        twin.get_submodule(path)._buffers[name] = _different_values(buffer)
    with errors_of(Path(str(model.config.name_or_path)).parent):
        twin.initialize_weights()  # type: ignore[no-untyped-call]
    return [
        f"{path}.{name}".lstrip(".") for (path, name), buffer in computed.items()
        if not torch.equal(twin.get_submodule(path)._buffers[name], buffer.cpu())  # type: ignore[arg-type]
    ]  # fmt: skip


def _different_values(buffer: Tensor) -> Tensor:
    """A buffer of the same shape and dtype that differs in every value."""
    if buffer.is_floating_point():
        return torch.full_like(buffer, torch.nan, device="cpu")
    return buffer.cpu() ^ 1 if buffer.dtype != torch.bool else ~buffer.cpu()


def _tied_to(model: PreTrainedModel, listed: list[str]) -> dict[str, str]:
    """In transformers 4 a head is tied to the embedding of the tokens, and so is what has its shape."""
    embedding: Any = model.get_input_embeddings()
    weight = getattr(embedding, "weight", None)
    names = dict(model.named_parameters(remove_duplicate=False))
    source = next((name for name, parameter in names.items() if parameter is weight), None)
    if source is None:
        return {}
    return {
        name: source for name, parameter in names.items()
        if name != source and parameter.shape == names[source].shape and any(re.search(key, name) for key in listed)
    }  # fmt: skip
