"""From a folder's configuration to a model of shapes: parameters on the meta device, buffers real.

Buffers are computed when a model is built (rotary frequencies, masks) and are in no weight file, so they have to be
real; parameters go to the meta device as soon as they are registered, before anything initialises them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from umcompress.documents.files import read_json
from umcompress.errors import ModelError
from umcompress.models import remote_code as code
from umcompress.models.hf.load import leftovers, own_code
from umcompress.models.hf.names import CONFIG

# The configuration that a compressed model was made from: its plans start there.
BASE_CONFIG = "base_config.json"
# Elements of a tensor that is not made in memory only to be thrown away.
LARGE = 1 << 22
# What a configuration with nonsense in it makes transformers raise.
CONFIG_ERRORS = (
    StrictDataclassError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError,
    ArithmeticError, AssertionError, IndexError, MemoryError,
)  # fmt: skip
_TASKS = ("FOR_CAUSAL_LM_", "FOR_IMAGE_TEXT_TO_TEXT_", "FOR_SEQ_TO_SEQ_CAUSAL_LM_", "")


_DEPTHS = frozenset({
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_encoder_layers", "num_decoder_layers",
    "encoder_layers", "decoder_layers", "depth", "num_blocks",
})  # fmt: skip
_MOST_LAYERS = 10_000


def config_file(folder: Path) -> Path:
    """Where the configuration to build from is."""
    base = folder / BASE_CONFIG
    return base if base.is_file() else folder / CONFIG


def read_config(folder: Path, trust: bool = False) -> PreTrainedConfig:
    """The configuration of a folder. Code that comes with a model is run only with consent (`trust`)."""
    file = config_file(folder)
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise _config_error(file, error) from error
    _refuse_depth(content, file)
    _refuse_class_names(content, file)
    if (own := own_code.own_config(content, file, trust)) is not None:
        return own
    try:
        config = leftovers.config_of(file, content)
    except CONFIG_ERRORS as error:
        raise _config_error(file, error) from error
    return config


def _refuse_class_names(content: Any, file: Path) -> None:
    """ModelError where what names the model's class is no list of names."""
    named = content.get("architectures") if isinstance(content, dict) else None
    if named is not None and not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
        raise ModelError(f"the configuration {file}", f"architectures: {str(named)[:40]}; it is a list of class names",
                         "look whether the file is damaged")


def _refuse_depth(content: Any, file: Path) -> None:
    """ModelError for more layers than any model has: each would be built until memory or time is gone."""
    if not isinstance(content, dict):
        return
    for key, value in content.items():
        if key in _DEPTHS and isinstance(value, int | float) and value > _MOST_LAYERS:
            raise ModelError(f"the configuration {file}", f"{key}: {str(value)[:40]}; up to {_MOST_LAYERS} are built",
                             "look whether the file is damaged")
        _refuse_depth(value, file)


def model_class(config: PreTrainedConfig, file: Path, trust: bool = False) -> type[PreTrainedModel]:
    """The class that the configuration names, else the first that transformers' auto classes offer.

    With consent (`trust`) a class of the code that comes with the model goes first.
    """
    import transformers

    if trust and (own := own_code.own_model_class(config, file.parent)) is not None:
        return own
    for name in config.architectures or ():
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            return found
    if own_code.has_model(config):
        raise code.untrusted_code(file.parent, "the model")
    for task in _TASKS:
        names: Any = getattr(modeling_auto, f"MODEL_{task}MAPPING_NAMES", {})
        offered = names.get(config.model_type)
        found = getattr(transformers, offered, None) if isinstance(offered, str) else None
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            return found
    raise ModelError(
        f"build the model of {file}",
        f"architectures {', '.join(config.architectures or ()) or 'not given'} (model_type {config.model_type})",
        "transformers must know the class, or the folder bring its code and name it in auto_map",
    )


def build(folder: Path, trust: bool = False) -> PreTrainedModel:
    """The model of a folder's configuration, in eval mode, with its generation settings."""
    config, file = read_config(folder, trust), config_file(folder)
    _refuse_quantized(config, folder)
    cls = model_class(config, file, trust)
    config.architectures = [cls.__name__]
    model = build_own(cls, config, folder) if cls.is_custom_code() else _build_known(cls, config, file)
    try:
        if model.can_generate() and (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
    except CONFIG_ERRORS as error:
        raise _config_error(file, error) from error
    model.train(False)
    return model


def _refuse_quantized(config: PreTrainedConfig, folder: Path) -> None:
    """Packed weights are no matrices to cut; and what is cut would be loaded as if it were packed."""
    for part in (config, config.get_text_config()):
        if (settings := getattr(part, "quantization_config", None)) is not None:
            method = settings.get("quant_method") if isinstance(settings, dict) else None
            raise ModelError(
                f"compress the model in {folder}",
                f"its weights are quantized ({method or 'quantization_config'} in {CONFIG})",
                "compress the model that it was made from, and quantize the result",
            )


def build_own(cls: type[PreTrainedModel], config: Any, folder: Path) -> PreTrainedModel:
    """A model whose code is not transformers'."""
    with own_code.errors_of(folder), parameters_on_meta(), own_code.tied_weights_as_lists():
        model = cls(config)
        own_code.repair_constructor(model)
    return model


def _build_known(cls: type[PreTrainedModel], config: Any, file: Path) -> PreTrainedModel:
    try:
        with parameters_on_meta():
            return cls(config)
    except CONFIG_ERRORS as error:
        raise _config_error(file, error) from error


# How weights get their first values: tensors of the meta device have none, and filling them takes most of the time.
_FILLS = frozenset({
    "normal_", "uniform_", "zero_", "fill_", "zeros_", "ones_", "constant_", "trunc_normal_", "kaiming_uniform_",
    "kaiming_normal_", "xavier_uniform_", "xavier_normal_", "orthogonal_", "erfinv_", "clamp_", "mul_", "add_",
})  # fmt: skip


class _LargeOnMeta(TorchFunctionMode):
    """Makes large tensors that nobody has filled on the meta device from the start, and fills none there.

    The experts of one layer of a mixture can be larger than the machine's memory, for the moment until they are
    registered. Small ones stay real: some are filled and registered as buffers.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        filled = args[0] if args else kwargs.get("tensor")
        if isinstance(filled, torch.Tensor) and filled.is_meta and getattr(func, "__name__", "") in _FILLS:
            return filled
        if func is torch.empty and kwargs.get("device") is None:
            size = kwargs.get("size", args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args)
            if math.prod(size) >= LARGE:
                kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules built inside keep no values of parameters; buffers are as always."""
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        # A tied parameter is on meta already and stays the same object.
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.data.to("meta"), requires_grad=parameter.requires_grad)
        register(self, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        with _LargeOnMeta():
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


@contextmanager
def buffers_on_meta(model: nn.Module) -> Iterator[None]:
    """A skeleton can run for its shapes while its buffers are where its parameters are."""
    kept = [(module, name, buffer) for module in model.modules() for name, buffer in module._buffers.items()]
    try:
        for module, name, buffer in kept:
            module._buffers[name] = None if buffer is None else buffer.to("meta")
        yield
    finally:
        for module, name, buffer in kept:
            module._buffers[name] = buffer


def is_shapes_only(model: nn.Module) -> bool:
    """Whether a model has no values."""
    return any(parameter.is_meta for parameter in model.parameters())


def kept_float32(model: PreTrainedModel, dtype: torch.dtype) -> set[str]:
    """Tensors that stay float32 although the model is loaded as `dtype`."""
    patterns = model._get_dtype_plan(dtype)
    return {name for name in model.state_dict(keep_vars=True) if any(part in name for part in patterns)}


def _config_error(file: Path, error: BaseException) -> ModelError:
    if type(error).__name__ == "AmbiguousGlobalPerLayerAttributeError":
        # Its message speaks to whoever writes the class. By name: older versions of transformers do not have it.
        key = str(error).partition(" ")[0].strip("'")
        return ModelError(
            f"build the model of {file}",
            f"per_layer_config gives layers their own {key}, and the class in this version of transformers "
            f"({transformers.__version__}) builds all layers with one",
            f"install a version whose class builds each layer from per_layer_config, or give all layers one {key}",
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    found = " ".join(lines[:2])[:300]
    return ModelError(f"build the model of {file}", found, "check the configuration; see docs/support.md for what runs")
