"""Layers whose output is read by something other than the next layer."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from umcompress.errors import PlanError
from umcompress.models.hf.layers.known_fields import _ELSEWHERE, _is_second
from umcompress.models.hf.names import MAIN_STACK

_BESIDE = "intermediate_layers_indices"


def fed(config: Any) -> set[int]:
    """Language blocks into which a configuration says that pictures go (Granite Vision)."""
    pairs = getattr(config, "deepstack_layer_map", None) or ()
    return {layer for _, layer in pairs} | set(getattr(config, "spatial_target_layers", None) or ())


def _feed_again(config: Any, kept: list[int], before: int) -> None:
    """Blocks that pictures go into are all there still; a talker reads out of one (Qwen3-Omni)."""
    talker: Any = getattr(config, "talker_config", None)
    if type(tap := getattr(talker, "accept_hidden_layer", None)) is int:
        talker.accept_hidden_layer = _tap(tap, kept, before)
    if pairs := getattr(config, "deepstack_layer_map", None):
        config.deepstack_layer_map = [[tap, kept.index(layer)] for tap, layer in pairs]
    if targets := getattr(config, "spatial_target_layers", None):
        config.spatial_target_layers = [kept.index(layer) for layer in targets]


def _tap_own_again(model: nn.Module, path: str, config: Any, kept: list[int], before: int) -> None:
    """A tower whose own configuration says where it is read: whoever reads it has noted that (Phi-4, Llama 3.2)."""
    parts = path.split(".")
    readers: list[Any] = [model.get_submodule(".".join(parts[:end])) for end in range(len(parts))]
    if type(tap := getattr(config, "feature_layer", None)) is int:
        config.feature_layer = _tap(tap, kept, before)
        for reader in readers:
            if vars(reader).get("layer_idx") == tap:
                reader.layer_idx = config.feature_layer
    if beside := read_beside(config, path):
        for holder in (config, *(reader for reader in readers if _BESIDE in vars(reader))):
            setattr(holder, _BESIDE, [kept.index(block) for block in beside])


def _tap_again(config: Any, kept: list[int], before: int) -> None:
    """Connectors that read a vision tower after a block that is not its last, counted from either end."""
    for name in ("vision_feature_layer", "vision_feature_layers", "spatial_vision_layer"):
        taps = getattr(config, name, None)
        if isinstance(taps, int):
            setattr(config, name, _tap(taps, kept, before))
        elif isinstance(taps, (list, tuple)):
            setattr(config, name, [_tap(tap, kept, before) for tap in taps])
    if (taps := tapped(config)) is not None:
        config.adapter_config.vision_feature_layer = [_tap(tap + (tap >= 0), kept, before) - (tap >= 0) for tap in taps]
    if pairs := getattr(config, "deepstack_layer_map", None):
        config.deepstack_layer_map = [[_tap(tap, kept, before), layer] for tap, layer in pairs]


def read_beside(config: Any, path: str) -> list[int]:
    """Blocks of a stack whose outputs are read beside the last one's, by its own configuration (Llama 3.2)."""
    return [] if _is_second(path) else list(getattr(config, _BESIDE, None) or ())


def tapped(config: Any) -> list[int] | None:
    """Vision blocks out of which a configuration says that a connector reads, -1 the last (Molmo 2)."""
    found = getattr(getattr(config, "adapter_config", None), "vision_feature_layer", None)
    return list(found) if isinstance(found, list | tuple) else None


def _tap(tap: int, kept: list[int], before: int) -> int:
    """0 is what goes into the first block, 1 what comes out of it; -1 what comes out of the last."""
    below = sum(block < (tap if tap >= 0 else before + 1 + tap) for block in kept)
    return below if tap >= 0 else below - len(kept) - 1


def _fed_by_vision(
    model: PreTrainedModel, owner: nn.Module, config: Any, stack: str, path: str, gone: set[int]
) -> None:
    """Qwen3-VL adds what some vision blocks see to the first language blocks, one to one: these have to stay.

    Granite Vision names the language blocks, Llama 3.2 those of the tower.
    """
    vision = getattr(model.config, "vision_config", None)
    sources = getattr(vision, "deepstack_visual_indexes", None) or ()
    bound = set(sources) if hasattr(owner, "deepstack_visual_indexes") else set()
    bound |= set(read_beside(config, path))
    if stack == MAIN_STACK:
        bound = set(range(len(sources))) | fed(model.config)
    elif config is vision and (taps := tapped(model.config)):
        count = len(model.get_submodule(path))  # type: ignore[arg-type]
        bound |= {tap % count for tap in taps}
    if lost := sorted(gone & bound):
        raise PlanError(
            f"drop blocks {', '.join(map(str, lost))} of {path}",
            f"what the vision tower sees goes through blocks {', '.join(map(str, sorted(bound)))} one to one",
            _ELSEWHERE,
        )
