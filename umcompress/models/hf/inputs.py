"""Fixed inputs for any model: what it takes is read off its configuration."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import select_best_resolution

from umcompress.errors import ModelError
from umcompress.models.hf.known_inputs import COMPUTED_POSITION_TABLES, WHOLE_PICTURES_OF_ANY_SIZE

Inputs = dict[str, Any]
# Where what transformers itself raises comes from; torch calls a forward that lacks an argument.
_THEIRS = tuple(f"{Path(str(library.__file__)).parent}/" for library in (transformers, torch.nn))
_POSITIONS = re.compile(r"(^|\.)(wpe|embed_positions|position_embeddings?)$")


def reads_text(model: PreTrainedModel) -> bool:
    """Whether the forward takes token ids."""
    return "input_ids" in inspect.signature(type(model).forward).parameters


def needs_picture(model: PreTrainedModel) -> bool:
    """Whether the forward takes no text without a picture."""
    pixels = inspect.signature(type(model).forward).parameters.get("pixel_values")
    return reads_text(model) and pixels is not None and pixels.default is pixels.empty


def generates_text(model: PreTrainedModel) -> bool:
    """Whether the model continues text. One that reads with an encoder and writes with a decoder does not."""
    any_model: Any = model
    if model.config.is_encoder_decoder:
        return False
    return reads_text(model) and model.can_generate() and any_model.get_output_embeddings() is not None


def text_inputs(model: PreTrainedModel, ids: Tensor) -> Inputs:
    """(B, T) ids as the model reads them; those of an encoder with a decoder go through both."""
    takes = inspect.signature(type(model).forward).parameters
    both = model.config.is_encoder_decoder and "decoder_input_ids" in takes
    return {"input_ids": ids, "decoder_input_ids": ids} if both else {"input_ids": ids}


def fixed_inputs(model: PreTrainedModel, ids: Tensor, pixels: Inputs | None) -> Inputs:
    """(B, T) ids and one picture as the whole model takes them: no picture where it continues texts without one."""
    takes = inspect.signature(type(model).forward).parameters
    pixels = pixels or {}
    if not reads_text(model):
        writes = bool(pixels) and model.config.is_encoder_decoder and "decoder_input_ids" in takes
        return pixels | ({"decoder_input_ids": ids[:1]} if writes else {})
    if needs_picture(model):
        to_each = {name: value.expand(len(ids), *value.shape[1:]) for name, value in pixels.items()}
        return text_inputs(model, ids) | to_each
    return text_inputs(model, ids) | ({} if generates_text(model) else pixels)


@contextmanager
def explaining_missing_inputs(model: PreTrainedModel) -> Iterator[None]:
    """ModelError where a forward asks for more: boxes, patches of its own, the state of a robot."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        if type(model).is_custom_code() or not raised_in.startswith(_THEIRS):
            raise
        raise ModelError(
            f"run {type(model).__name__}", f"text and a picture do not suffice: {' '.join(str(error).split())[:200]}",
            "use a model that reads text, or text and pictures",
        ) from error  # fmt: skip


def require_inputs(model: PreTrainedModel) -> None:
    """ModelError for a model of transformers that takes neither text nor pictures: nothing would be compared."""
    if reads_text(model) or type(model).is_custom_code() or picture(model) is not None:
        return
    takes = [name for name in inspect.signature(type(model).forward).parameters if name not in ("self", "kwargs")]
    raise ModelError(
        f"run {type(model).__name__}", f"it takes {', '.join(takes[:3])}, and neither text nor pictures as known here",
        "use a model that reads text or pictures",
    )  # fmt: skip


def require_untied_stacks(model: PreTrainedModel, stacks: Mapping[str, str]) -> None:
    """ModelError where two stacks have the same weights (an encoder and a decoder that are one)."""
    owners: dict[int, str] = {}
    for path in stacks.values():
        for parameter in model.get_submodule(path).parameters():
            if (other := owners.setdefault(id(parameter), path)) != path:
                raise ModelError(
                    f"compress {type(model).__name__}",
                    f"the blocks of {other} and of {path} have the same weights: a cut of one is one of the other",
                    "use a model whose stacks have weights of their own",
                )


def text_generating_part(model: PreTrainedModel) -> PreTrainedModel:
    """What runs in a model that cannot be called as a whole: an omni model's thinker. Any other model itself."""
    if type(model).forward is not torch.nn.Module.forward:
        return model
    parts = (child for child in model.children() if isinstance(child, PreTrainedModel))
    return next((part for part in parts if generates_text(part)), model)


def learned_positions(model: PreTrainedModel) -> int | None:
    """How many tokens a model of learned positions takes; None for others, which compute theirs.

    MPT computes a table of biases, of just so many tokens.
    """
    if model.config.model_type in COMPUTED_POSITION_TABLES:
        return positions(text_config(model))
    tables = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Embedding)]
    if not any(_POSITIONS.search(name) and "vision" not in name for name in tables):
        return None
    return positions(text_config(model))


def positions(config: Any) -> int | None:
    """How many tokens a configuration speaks of."""
    names = ("max_position_embeddings", "max_seq_len")
    return next((found for name in names if isinstance(found := getattr(config, name, None), int)), None)


def ids_without_special_tokens(model: PreTrainedModel, batch: int, length: int) -> Tensor:
    """(B, T) ids spread over the vocabulary, none of them a special token of the configuration."""
    config = text_config(model)
    special = _special(model.config.to_dict())
    allowed = [token for token in range(min(int(config.vocab_size), 4096)) if token not in special]
    place = torch.arange(batch * length).mul(7919).add(11) % len(allowed)
    return torch.tensor(allowed)[place].view(batch, length)


def text_config(model: PreTrainedModel) -> Any:
    """The language model's part of a configuration; code that came with a model may call it anything."""
    found = model.config.get_text_config()
    if hasattr(found, "vocab_size"):
        return found
    parts = (getattr(model.config, name) for name in config_parts(model.config))
    return next((part for part in parts if hasattr(part, "vocab_size")), found)


def config_parts(config: Any) -> list[str]:
    """Fields that hold a configuration of their own, declared or not."""
    found = [name for name, value in vars(config).items() if isinstance(value, PreTrainedConfig)]
    return list(config.sub_configs) or found


def _special(config: dict[str, Any]) -> set[int]:
    found: set[int] = set()
    for key, value in config.items():
        if isinstance(value, dict) and key != "vocabulary_map":
            found |= _special(value)
        elif str(key).endswith(("token_id", "token_index")) or key == "vocabulary_map":
            listed = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
            found |= {token for token in listed if isinstance(token, int)}
    return found


def picture(model: PreTrainedModel, fill: float | None = None, patches: int = 1) -> Inputs | None:
    """One picture as the vision tower takes it: a ramp, or one value everywhere. None where there is no tower.

    patches: how many rows and columns of them where a tower takes any number, as far as its config has them in groups.
    """
    vision = getattr(model.config, "vision_config", None)
    if vision is None and "pixel_values" in inspect.signature(type(model).forward).parameters:
        vision = getattr(model.config, "vq_config", getattr(model.config, "encoder", model.config))
    if vision is None or _needs_other_inputs(model, vision):
        return None
    takes = _vision_arguments(model)
    if hasattr(vision, "spatial_merge_size") and vision.model_type not in WHOLE_PICTURES_OF_ANY_SIZE:
        return _patches(vision, fill, patches) if hasattr(vision, "temporal_patch_size") else None
    size = getattr(vision, "image_size", None) or getattr(vision, "resolution", None)
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    channels = int(getattr(vision, "num_channels", getattr(vision, "in_channels", 3)))
    grids = getattr(model.config, "image_grid_pinpoints", None)
    if grids and "image_sizes" in takes:
        # The whole and its parts.
        high, wide = select_best_resolution((height, width), grids)
        parts = 1 + (high // height) * (wide // width)
        values = ramp((1, parts, channels, height, width), fill)
        return {"pixel_values": values, "image_sizes": torch.tensor([[height, width]])}
    if vision.model_type in WHOLE_PICTURES_OF_ANY_SIZE:
        # Any size; patches may go in groups.
        side = int(vision.patch_size) * int(getattr(model.config, "spatial_merge_size", 1)) * 2
        return {"pixel_values": ramp((1, channels, side, side), fill), "image_sizes": torch.tensor([[side, side]])}
    if "pixel_attention_mask" in takes:
        return {"pixel_values": ramp((1, 1, channels, height, width), fill)}
    return {"pixel_values": ramp((1, channels, height, width), fill)}


def _vision_arguments(model: PreTrainedModel) -> set[str]:
    """Names of what the vision tower is given."""
    found = vision_module(model)
    return set() if found is None else set(inspect.signature(found.get_image_features).parameters)


def _needs_other_inputs(model: PreTrainedModel, vision: Any) -> bool:
    """Whether pictures have to come cut into patches, without a tower (Fuyu), or with more than pixels and sizes."""
    found = vision_module(model)
    if found is None:
        return False
    given = inspect.signature(found.get_image_features).parameters.values()
    needed = {one.name for one in given if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD}
    return vision is model.config or bool(needed - {"pixel_values", "image_sizes", "image_grid_thw"})


def vision_module(model: PreTrainedModel) -> Any:
    """The module whose `get_image_features` the forward calls; None where there is none."""
    parts = (model.base_model, model)
    return next((part for part in parts if hasattr(part, "get_image_features")), None)


def _patches(vision: Any, fill: float | None, patches: int) -> Inputs:
    """Qwen's layout: (patches, channels * frames * side * side) and how many patches there are each way."""
    group = int(vision.spatial_merge_size)
    side = max(2, patches // group) * group
    width = int(getattr(vision, "in_channels", 3)) * int(vision.temporal_patch_size) * int(vision.patch_size) ** 2
    return {"pixel_values": ramp((side * side, width), fill), "image_grid_thw": torch.tensor([[1, side, side]])}


def ramp(shape: tuple[int, ...], fill: float | None) -> Tensor:
    count = int(torch.tensor(shape).prod())
    return (torch.linspace(-1, 1, count) if fill is None else torch.full((count,), fill)).view(shape)
