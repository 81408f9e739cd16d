"""After blocks or attentions have gone: what a model of transformers keeps count of by layer number.

A cache has one slot a layer, and masks are sized by the first slot of their type (sliding, full). So the first slot
of each type has to belong to an attention that is still there, or lengths are read from a slot that nothing fills.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from umcompress.graph.trace import is_attention
from umcompress.models.hf.by_layer import LookedUp, looked_up
from umcompress.models.hf.family import TransformersFamily

COUNTS = ("num_hidden_layers", "depth", "num_layers", "n_layers", "n_layer", "encoder_layers", "decoder_layers",
          "num_blocks")  # fmt: skip
# One entry a layer.
_BY_LAYER = re.compile(r"_types?$|^no_rope_layers$|_per_layer$|_pattern$|^attention_layers$|_layers_mask$|^layers_")
# Layer numbers.
_NUMBERS = re.compile(
    r"^(mlp_only_layers|fullatt_block_indexes|deepstack_visual_indexes|cross_attention_layers|global_attn_layers|"
    r"look_ahead_layers|look_backward_layers)$|"
    r"layer_(indices|indexes|ids)$"
)
# What some configurations compute from other fields: a word for each layer.
_KINDS = ("layer_types", "layers_block_type")
# How many layers from the bottom differ from those above.
_BOUNDARIES = ("max_window_layers", "first_k_dense_replace")
# How many layers at the top do.
_FROM_THE_TOP = ("num_kv_shared_layers",)
# Of the module that runs the blocks: where those above begin.
_EDGES = ("first_kv_shared_layer_idx",)
# A layer that others take keys and values from.
SOURCES = ("kv_shared_layer_index",)
# The same of a configuration: for each layer the one whose keys and values it uses, which may be itself.
SOURCES_BY_LAYER = "kv_source_layers"
_BESIDE = "intermediate_layers_indices"
_COMPUTED = "_umcompress_computed"
_LAST = ("down_proj", "fc2", "c_proj", "w2", "linear2", "dense_4h_to_h")


def settle(model: PreTrainedModel, stacks: Mapping[str, str], removed: Mapping[str, Sequence[int]]) -> None:
    """`removed`: positions that blocks had before they were taken out of their stacks, which is done."""
    for stack, path in stacks.items():
        blocks = model.get_submodule(path)
        assert isinstance(blocks, nn.ModuleList)
        owner, config = owner_of(model, path)
        if gone := set(removed.get(stack, ())):
            before = len(blocks) + len(gone)
            kept = [i for i in range(before) if i not in gone]
            _renumber(owner, config, path, kept, before, looked_up(owner, blocks))
            _renumber_slots(config, blocks, kept, before)
            if stack == TransformersFamily.main_stack:
                _feed_again(model.config, kept, before)
            else:
                _tap_own_again(model, path, config, kept, before)
                if config is not getattr(model.config, "audio_config", None):
                    _tap_again(model.config, kept, before)
        _give_slots(config, blocks)
        _restate_widths(blocks)


def owner_of(model: PreTrainedModel, path: str) -> tuple[nn.Module, Any]:
    """The module that runs the blocks of a stack, and the configuration that it reads."""
    parent = path.rpartition(".")[0]
    while parent and not hasattr(model.get_submodule(parent), "config"):
        parent = parent.rpartition(".")[0]
    owner = model.get_submodule(path.rpartition(".")[0])
    return owner, model.get_submodule(parent).config


def count_field(config: Any, path: str, layers: int) -> str | None:
    """The field of a configuration that says how many blocks the stack at `path` has."""
    sides = [name for name in ("encoder", "decoder") if name in path.split(".")]
    side = [field for name in sides for field in (f"{name}_layers", f"num_{name}_layers")]
    side += ["num_global_layers"] if _is_second(path) else []
    fields = [*side, *COUNTS]
    return next((name for name in fields if getattr(config, name, None) == layers), None)


def _is_second(path: str) -> bool:
    """Whether a stack works on all tiles of a picture, above another one of the same configuration (Llama 3.2)."""
    return "global_transformer" in path.split(".")


def _renumber(
    owner: nn.Module, config: Any, path: str, kept: list[int], before: int, by_code: LookedUp
) -> None:
    new = {old: position for position, old in enumerate(kept)}
    _renumber_sources(config, new)
    kinds = {name: value for name in _KINDS if isinstance(value := getattr(config, name, None), list)}
    for holder in (config, owner):
        for name, value in list(vars(holder).items()):
            if not isinstance(value, list | tuple):
                continue
            if _NUMBERS.search(name) or (name in by_code.numbers and _are_layers(value, before)):
                setattr(holder, name, type(value)(new[old] for old in value if old in new))
            elif (_BY_LAYER.search(name) or name in by_code.entries) and len(value) == before:
                setattr(holder, name, type(value)(value[old] for old in kept))
    for name in _BOUNDARIES:
        if isinstance(edge := getattr(config, name, None), int):
            setattr(config, name, sum(old < edge for old in kept))
    for name in _FROM_THE_TOP:
        if isinstance(last := getattr(config, name, None), int):
            setattr(config, name, sum(old >= before - last for old in kept))
    if (count := count_field(config, path, before)) is not None:
        setattr(config, count, len(kept))
    _renumber_overrides(config, new)
    for name, value in kinds.items():
        say(config, name, [value[old] for old in kept] if len(value) == before else value)
    for name in _EDGES:
        if type(edge := vars(owner).get(name)) is int:
            setattr(owner, name, sum(old < edge for old in kept))
    for name in (*COUNTS, "layers"):
        if type(vars(owner).get(name)) is int and vars(owner)[name] == before:
            setattr(owner, name, len(kept))


def _are_layers(value: list[Any] | tuple[Any, ...], before: int) -> bool:
    return all(type(one) is int and 0 <= one < before for one in value)


def _renumber_sources(config: Any, new: Mapping[int, int]) -> None:
    """None of those that go is a source of one that stays: this was asked before."""
    if isinstance(sources := getattr(config, SOURCES_BY_LAYER, None), list):
        setattr(config, SOURCES_BY_LAYER, [new[source] for layer, source in enumerate(sources) if layer in new])


def _renumber_slots(config: Any, blocks: nn.ModuleList, kept: list[int], before: int) -> None:
    """What others borrow from or look up by layer; and how many slots there are where a block has several (LongCat)."""
    new = {old: position for position, old in enumerate(kept)}
    for module in set(blocks.modules()):
        for name in SOURCES:
            if type(source := vars(module).get(name)) is int and source in new:
                setattr(module, name, new[source])
        for name, table in vars(module).items():
            known = type(table) is dict and "layer" in name and table and all(type(key) is int for key in table)
            if known and set(table) <= set(range(before)):
                setattr(module, name, {new[old]: value for old, value in table.items() if old in new})
    slots = max((len({module.layer_idx for module in _mixers(block)}) for block in blocks), default=1)
    if slots > 1 and getattr(config, "num_hidden_layers", None) == before * slots:
        config.num_hidden_layers = len(kept) * slots


def _renumber_overrides(config: Any, new: Mapping[int, int]) -> None:
    """What a configuration says of single layers, for those that are left."""
    spec = vars(config).get("_heterogeneity_spec")
    if spec is not None:
        left = {new[old]: dict(own) for old, own in spec.per_layer_overrides.items() if old in new}
        config.per_layer_config = left or None


def say(config: Any, name: str, value: list[str]) -> None:
    """Set a field. Where the configuration computes it from others, which no longer say it, this instance says it."""
    if getattr(config, name, value) == value:
        return
    own: Any = type(config)
    where = own.attribute_map.get(name, name)
    if not isinstance(computed := getattr(own, where, None), property) or computed.fset is not None:
        setattr(config, name, value)
        return
    kept = tuple(value)
    config.__class__ = type(own.__name__, (own,), {where: property(lambda _: list(kept)), _COMPUTED: unsaid(own)})


def unsaid(own: Any) -> Any:
    """The class of a configuration as transformers has it, which computes what `say` has set."""
    return getattr(own, _COMPUTED, own)


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


def _give_slots(config: Any, blocks: nn.ModuleList) -> None:
    """Number the attentions that are left; retype the layers that have none."""
    mixers = [_mixers(block) for block in blocks]
    if not any(mixers) or any(len({module.layer_idx for module in found}) > 1 for found in mixers):
        return
    types = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    known = isinstance(types, list) and len(types) == len(blocks)
    kinds: list[str] = list(types) if known and types is not None else [""] * len(blocks)
    nearest = next(kind for kind, found in zip(reversed(kinds), reversed(mixers), strict=True) if found)
    for index in reversed(range(len(blocks))):
        nearest = kinds[index] = kinds[index] if mixers[index] else nearest
    for index, found in enumerate(mixers):
        first = kinds.index(kinds[index])
        # Between the first slot of a type and its first owner there are only layers without an attention.
        owner = next(i for i, kind in enumerate(kinds) if kind == kinds[index] and mixers[i]) if found else index
        for module in found:
            module.layer_idx = first if index == owner else index
    if known:
        for name in _KINDS:
            if getattr(config, name, None) == types:
                say(config, name, kinds)


def _restate_widths(blocks: nn.ModuleList) -> None:
    """Feed-forwards that keep their width as a number besides."""
    for module in blocks.modules():
        found = (getattr(module, name, None) for name in _LAST)
        last = next((linear for linear in found if isinstance(linear, nn.Linear)), None)
        for name in ("intermediate_size", "ffn_dim", "hidden_features"):
            if last is not None and isinstance(getattr(module, name, None), int):
                setattr(module, name, last.in_features)


def _mixers(block: nn.Module) -> list[Any]:
    """The parts of a block that have a slot of the cache."""
    return [
        module for module in block.modules()
        if isinstance(getattr(module, "layer_idx", None), int)
        and module is not block and is_attention(module)
    ]  # fmt: skip
