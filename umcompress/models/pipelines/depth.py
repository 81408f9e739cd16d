"""Blocks that are taken out of a part of a pipeline: which may go, and the fields that say how many there are.

What a field of a diffusers configuration means is not taken from its name: a model is built with another value, and
the stack looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from torch import nn

from umcompress.documents.base import Task
from umcompress.errors import PlanError
from umcompress.graph.lower import original_class
from umcompress.models.hf.layers import rules
from umcompress.models.hf.load.skeleton import CONFIG_ERRORS
from umcompress.models.pipelines.index import Part
from umcompress.models.pipelines.parts import PipelineModel, build_diffusers, text_family
from umcompress.models.pipelines.stacks import component_of

_NUMBERS = re.compile(r"(layers|layer_ids|indices|indexes)$")
# Classes whose blocks are read by their number in code that no configuration tells of.
BY_NUMBER = {
    "ChromaTransformer2DModel": "one module makes the modulations of all blocks, by their numbers",
    "HunyuanDiT2DModel": "blocks of the first half hand their output to those of the second half",
}
# Classes of which something else reads a part of the first block.
FIRST_READ = {
    "DiTTransformer2DModel": "what it embeds of time and class is read again behind the last block",
}
# Classes whose last block makes a stream of text that nothing reads, and its feed-forward in it.
TEXT_UNREAD = {
    "QwenImageTransformer2DModel": ("transformer_blocks", "txt_mlp"),
}


def check_removable(model: PipelineModel, removed: Mapping[str, Sequence[int]]) -> None:
    """PlanError where one of the blocks at these positions has to stay."""
    for part in model.index.parts:
        module, own = model.of(part), _own(model, part, removed)
        if part.library == "transformers":
            rules.check_removable(module, text_family(component_of(part.name)).stacks(module), own)
            continue
        kind = original_class(module).__name__
        for path, gone in own.items():
            if why := BY_NUMBER.get(kind) or (FIRST_READ.get(kind) if 0 in gone else None):
                raise PlanError(
                    f"drop blocks {', '.join(map(str, gone))} of {part.name}.{path}", why,
                    "prune channels instead, or drop single branches (`unit: feed_forward`)",
                )


def update_block_counts(model: PipelineModel, removed: Mapping[str, Sequence[int]]) -> None:
    """Make numbers right that are kept by layer.  Blocks at the positions `removed` have been taken out already."""
    for part in model.index.parts:
        module, own = model.of(part), _own(model, part, removed)
        if part.library == "transformers":
            rules.update_block_counts(module, text_family(component_of(part.name)).stacks(module), own)
            continue
        # All fields are looked up before one is changed: a number may be told from another by its value alone.
        changes: dict[str, Any] = {}
        for path, gone in own.items():
            changes |= _renumbered(module, path, set(gone))
        _register(module, changes)


def _own(model: PipelineModel, part: Part, removed: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """What goes from the stacks of one part, by the names that they have there."""
    start = f"{part.name}."
    by_path = {model.stacks[stack]: list(gone) for stack, gone in removed.items() if gone}
    inside = {path.removeprefix(start): gone for path, gone in by_path.items() if path.startswith(start)}
    if part.library != "transformers":
        return inside
    names = {path: name for name, path in text_family(component_of(part.name)).stacks(model.of(part)).items()}
    return {names[path]: gone for path, gone in inside.items()}


def _renumbered(module: Any, path: str, gone: set[int]) -> dict[str, Any]:
    """The fields of a configuration of diffusers that change with a stack."""
    before = len(module.get_submodule(path)) + len(gone)
    kept = [place for place in range(before) if place not in gone]
    changes: dict[str, Any] = {}
    if (field := count_field(module, path, before)) is not None:
        changes[field] = len(kept)
    for name, value in dict(module.config).items():
        if _NUMBERS.search(name) and isinstance(value, list | tuple) and _are_places(value, before):
            changes[name] = type(value)(kept.index(place) for place in value if place in kept)
    return changes


def _register(module: Any, changes: dict[str, Any]) -> None:
    """Set fields of a configuration, and attributes of the same names."""
    module.register_to_config(**changes)
    for name, value in changes.items():
        if vars(module).get(name) is not None:
            setattr(module, name, value)


def _are_places(values: Sequence[Any], before: int) -> bool:
    return all(type(one) is int and 0 <= one < before for one in values)


def count_field(module: Any, path: str, before: int) -> str | None:
    """The field of a configuration that says how many blocks the stack at `path` has; it says `before`."""
    config = {name: value for name, value in dict(module.config).items() if not name.startswith("_")}
    try:
        text = json.dumps(config, sort_keys=True)
    except TypeError:
        return None
    kind: Any = original_class(module)
    return _count_field(kind, text, path, before)


@cache
def _count_field(cls: Any, text: str, path: str, before: int) -> str | None:
    config = json.loads(text)
    other = before - 1 if before > 1 else 2
    if len(build_diffusers(cls, config).get_submodule(path)) != before:  # type: ignore[arg-type]
        return None
    for name, value in config.items():
        if type(value) is not int or value != before:
            continue
        try:
            blocks = build_diffusers(cls, config | {name: other}).get_submodule(path)
        except CONFIG_ERRORS:
            continue
        if isinstance(blocks, nn.ModuleList) and len(blocks) == other:
            return str(name)
    return None


def not_read(model: PipelineModel) -> dict[str, Task]:
    """In the last block the picture has read the text; what the text goes through there no picture depends on."""
    found: dict[str, Task] = {}
    for part in model.index.parts:
        module = model.of(part)
        if (named := TEXT_UNREAD.get(original_class(module).__name__)) is None:
            continue
        stack, branch = named
        last = f"{stack}.{len(module.get_submodule(stack)) - 1}.{branch}"
        names = {name for name, _ in module.named_modules()}
        if (path := next((path for path in (f"{last}.net", last) if path in names), None)) is not None:
            found[f"{part.name}.{path}"] = "generation"
    return found
