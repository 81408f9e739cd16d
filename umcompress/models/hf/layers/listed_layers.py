"""What a configuration, and the module that runs the blocks, count or list by layer."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from umcompress.graph.lower import original_class
from umcompress.models.hf.layers.config_fields import count_field, owner_of, set_field
from umcompress.models.hf.layers.fields_by_code import looked_up
from umcompress.models.hf.layers.known_fields import (
    BY_LAYER,
    FROM_THE_BOTTOM,
    FROM_THE_TOP,
    LAYER_KINDS,
    LAYER_NUMBERS,
    OWNER_BOUNDARIES,
    OWNER_COUNTS,
    PER_LAYER_EMBEDDING,
)
from umcompress.models.hf.layers.removal import Removal


def check(removal: Removal) -> None:
    """PlanError where a number cannot follow: two stacks have it in common, or a tensor is cut by layer."""
    model, gone = removal.model, removal.gone
    # Video-LLaVA has two towers of one configuration, which gives both as many blocks.
    counted = _counted(model, removal.path)
    for other, path in removal.stacks.items():
        alike = other == removal.stack or set(removal.removed.get(other, ())) == gone
        if counted is not None and not alike and _counted(model, path) == counted:
            raise removal.refused(
                gone, f"{path} has as many blocks by the same {counted[1]} of the configuration",
                "leave the blocks of both",
            )  # fmt: skip
    if getattr(removal.config, PER_LAYER_EMBEDDING, None):
        raise removal.refused(
            gone, f"each block reads its own columns of the per-layer embedding ({PER_LAYER_EMBEDDING}), which stay",
            "drop attentions instead (`unit: attention`), or prune channels and heads",
        )


def _counted(model: PreTrainedModel, path: str) -> tuple[int, str, Any] | None:
    """Which number of which configuration says how many blocks a stack has, and their class."""
    blocks, (_, config) = model.get_submodule(path), owner_of(model, path)
    assert isinstance(blocks, nn.ModuleList)
    field = count_field(config, path, len(blocks))
    return None if field is None else (id(config), field, original_class(blocks[0]))


def renumber(removal: Removal) -> None:
    """Entries, numbers and counts of the layers that are left."""
    config, owner, kept, before = removal.config, removal.owner, removal.kept, removal.before
    # Read before anything is set: some configurations compute these from the other fields.
    kinds = {name: value for name in LAYER_KINDS if isinstance(value := getattr(config, name, None), list)}
    _renumber_lists(removal)
    for name in FROM_THE_BOTTOM:
        if isinstance(edge := getattr(config, name, None), int):
            setattr(config, name, sum(old < edge for old in kept))
    for name in FROM_THE_TOP:
        if isinstance(last := getattr(config, name, None), int):
            setattr(config, name, sum(old >= before - last for old in kept))
    if (count := count_field(config, removal.path, before)) is not None:
        setattr(config, count, len(kept))
    _renumber_overrides(removal)
    for name, value in kinds.items():
        set_field(config, name, [value[old] for old in kept] if len(value) == before else value)
    for name in OWNER_BOUNDARIES:
        if type(edge := vars(owner).get(name)) is int:
            setattr(owner, name, sum(old < edge for old in kept))
    for name in OWNER_COUNTS:
        if type(vars(owner).get(name)) is int and vars(owner)[name] == before:
            setattr(owner, name, len(kept))


def _renumber_lists(removal: Removal) -> None:
    """Lists whose names, or the code that reads them, say that they are by layer."""
    by_code = looked_up(removal.owner, removal.blocks)
    new, before = removal.new, removal.before
    for holder in (removal.config, removal.owner):
        for name, value in list(vars(holder).items()):
            if not isinstance(value, list | tuple):
                continue
            are_layers = all(type(one) is int and 0 <= one < before for one in value)
            if LAYER_NUMBERS.search(name) or (name in by_code.numbers and are_layers):
                setattr(holder, name, type(value)(new[old] for old in value if old in new))
            elif (BY_LAYER.search(name) or name in by_code.entries) and len(value) == before:
                setattr(holder, name, type(value)(value[old] for old in removal.kept))


def _renumber_overrides(removal: Removal) -> None:
    """`per_layer_config`: what a configuration says of single layers."""
    spec = vars(removal.config).get("_heterogeneity_spec")
    if spec is not None:
        overrides = spec.per_layer_overrides.items()
        left = {removal.new[old]: dict(own) for old, own in overrides if old in removal.new}
        removal.config.per_layer_config = left or None
