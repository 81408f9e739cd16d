"""Whether the parts of an edited pipeline are ordinary ones, and the configurations that say so.

A configuration is derived from what a part has become, and then tried: a model built from it must have the same
tensors and settings, module by module. Then `DiffusionPipeline.from_pretrained` loads the folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from umcompress.checkpoint.writer import TensorToWrite
from umcompress.documents.files import read_json, read_text
from umcompress.graph.guards import ABSENT, GIVEN
from umcompress.graph.lower import lowered_graph, original_class
from umcompress.models.hf.export import ordinary, per_layer
from umcompress.models.hf.load.skeleton import BASE_CONFIG, CONFIG_ERRORS, config_file
from umcompress.models.hf.names import CONFIG
from umcompress.models.hf.names import WEIGHTS as TRANSFORMERS_WEIGHTS
from umcompress.models.parts_of_folder import BASE_INDEX, INDEX
from umcompress.models.pipelines.files import sources, values_of
from umcompress.models.pipelines.index import OURS, Part
from umcompress.models.pipelines.one_task import language_model
from umcompress.models.pipelines.parts import PipelineModel, build_diffusers, build_part, text_family
from umcompress.models.pipelines.stacks import component_of
from umcompress.models.plain_folder import Plain
from umcompress.rewrite.nn.absent import kept_task

_SETTING = (int, float, bool, str, tuple)
# Settings of a module that tracing and torch keep, or that only number it.
_NO_SETTING = ("training", "gradient_checkpointing", "layer_id", GIVEN, ABSENT)
_SHOWN = 3


def plain_folder(
    model: PipelineModel, source: Path, values: Mapping[str, TensorToWrite] | None = None
) -> Plain | str:
    """A folder that diffusers loads by itself, or why there is none."""
    texts: dict[str, str] = {}
    reasons: list[str] = []
    index, note = dict(model.index.content), ""
    weights: dict[str, Mapping[str, TensorToWrite]] = dict(sources(model, values))
    for part in model.index.parts:
        if not is_changed(part, model, source):
            continue
        if (alone := language_model(model.of(part))) is not None:
            config, why, tensors = _by_itself(part, model, alone, source, values)
            weights[f"{part.name}/{TRANSFORMERS_WEIGHTS}"] = tensors
            index[part.name] = [part.library, original_class(alone).__name__]
            note = f"{part.name}/ is a {original_class(alone).__name__}, without {part.kind} around it"
        else:
            config, why = plain_config(part, model, source, values_of(part, values))
        texts[f"{part.name}/{CONFIG}"] = config
        reasons += [f"{part.name}: {reason}" for reason in why]
    if reasons:
        return "; ".join(reasons)
    if (source / BASE_INDEX).is_file() or index != model.index.content:
        texts[INDEX] = _as_text(index)
    dropped = {BASE_INDEX, *(f"{part.name}/{BASE_CONFIG}" for part in model.index.parts)}
    return Plain(weights, texts, frozenset(dropped), loads_with="diffusers", note=note)


def _by_itself(
    part: Part, model: PipelineModel, alone: Any, source: Path, values: Mapping[str, TensorToWrite] | None
) -> tuple[str, list[str], Mapping[str, TensorToWrite]]:
    """Of a language model that takes its encoder's place: configuration, what that does not say, and weights."""
    path = next(name for name, inner in model.named_modules() if inner is alone)
    inside = None
    if values is not None:
        inside = {name.removeprefix(f"{path}."): one for name, one in values.items() if name.startswith(f"{path}.")}
    made = ordinary.plain_folder(alone, text_family(component_of(part.name)), source / part.name, inside)
    if isinstance(made, str):
        return "", [made], {}
    return made.texts[CONFIG], [], made.weights[TRANSFORMERS_WEIGHTS]


def own_texts(model: PipelineModel, source: Path) -> dict[str, str]:
    """Files of a pipeline that only `umcompress.load` builds: what its parts came from, and what they are now.

    The index names us as the library of those parts: diffusers then says so, where it would leave out weights.
    """
    content, texts = dict(model.index.content), dict[str, str]()
    for part in model.index.parts:
        if not is_changed(part, model, source):
            continue
        own = source / part.name
        config, why = plain_config(part, model, source)
        if part.library == "transformers" and why:
            family = text_family(component_of(part.name))
            made = per_layer.own_configs(model.of(part), family, own)
            texts |= {f"{part.name}/{name}": text for name, text in made.items()}
        else:
            texts[f"{part.name}/{CONFIG}"] = config
            texts[f"{part.name}/{BASE_CONFIG}"] = read_text(config_file(own))
        content[part.name] = [OURS, part.kind]
    base = source / BASE_INDEX
    return texts | {INDEX: _as_text(content), BASE_INDEX: read_text(base if base.is_file() else source / INDEX)}


def _as_text(content: Mapping[str, Any]) -> str:
    return json.dumps(dict(content), indent=2) + "\n"


def is_changed(part: Part, model: PipelineModel, source: Path) -> bool:
    """Whether a part is no longer what the configuration in its folder builds."""
    module = model.of(part)
    before = build_part(part, source, component_of(part.name))
    return _shapes(module) != _shapes(before) or any(lowered_graph(inner) is not None for inner in module.modules())


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict(keep_vars=True).items()}


def plain_config(
    part: Part, model: PipelineModel, source: Path, values: Mapping[str, TensorToWrite] | None = None
) -> tuple[str, list[str]]:
    """The text of the configuration of a part as it is now, and why it does not say all."""
    module, own = model.of(part), source / part.name
    if part.library == "transformers":
        if (task := kept_task(module)) is not None:
            config = ordinary.content_of(ordinary.plain_config(module, _family(part))[0])
            reason = f"it is specialized for {task}, and transformers builds {part.kind} with all of its parts"
            return ordinary.as_text(config), [reason]
        made = ordinary.plain_folder(module, text_family(component_of(part.name)), own, values)
        if isinstance(made, str):
            return ordinary.as_text(ordinary.content_of(ordinary.plain_config(module, _family(part))[0])), [made]
        return made.texts[CONFIG], []
    config = read_json(config_file(own)) | {n: v for n, v in dict(module.config).items() if not n.startswith("_")}
    if lowered := sum(lowered_graph(inner) is not None for inner in module.modules()):
        return _as_text(config), [f"{lowered} of its blocks lost branches or have experts"]
    differences = list(_differences(module, config))
    if not differences:
        return _as_text(config), []
    for tried in _with_widths(module, config):
        if not list(_differences(module, tried)):
            return _as_text(tried), []
    return _as_text(config), [f"its configuration has no field for what changed: {'; '.join(differences[:_SHOWN])}"]


def _family(part: Part) -> Any:
    return text_family(component_of(part.name))


def _with_widths(module: Any, config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Configurations with one field changed, by the ratio in which the first linear that differs is narrower."""
    try:
        whole = build_diffusers(original_class(module), config)
    except CONFIG_ERRORS:
        return
    now, before = _shapes(module), _shapes(whole)
    changed = [(before[n][0], now[n][0]) for n in before if n in now and before[n][:1] != now[n][:1]]
    if not changed:
        return
    old, new = changed[0]
    for name, value in config.items():
        if type(value) is int and value in (old, old // 2) and (value * new) % old == 0:
            yield {**config, name: value * new // old}
        elif type(value) in (int, float) and _is_ratio(name):
            ratio = value * new / old
            yield {**config, name: int(ratio) if ratio == int(ratio) and type(value) is int else ratio}


def _is_ratio(name: str) -> bool:
    """Whether a field says how many times wider a feed-forward is."""
    return name.endswith(("mlp_ratio", "mlp_width_ratio", "ffn_dim_multiplier", "ff_mult"))


def _differences(module: Any, config: Mapping[str, Any]) -> Iterator[str]:
    """What a model built from `config` has otherwise than `module`."""
    try:
        built = build_diffusers(original_class(module), config)
    except CONFIG_ERRORS as error:
        yield f"diffusers does not build it: {(str(error).splitlines() or [type(error).__name__])[0][:200]}"
        return
    ours, theirs = _shapes(module), _shapes(built)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            yield f"{name} has {list(ours.get(name, ()))}, built {list(theirs.get(name, ()))}"
    others = dict(built.named_modules())
    for path, inner in module.named_modules():
        other = others.get(path)
        if other is None or original_class(inner) is not original_class(other):
            yield f"{path or 'the model'} is of another class"
        elif (mine := _settings(inner)) != (built_ones := _settings(other)):
            names = [name for name in mine.keys() | built_ones.keys() if mine.get(name) != built_ones.get(name)]
            yield f"{path or 'the model'} has other {', '.join(sorted(names))}"


def _settings(module: nn.Module) -> dict[str, Any]:
    return {
        name: value for name, value in vars(module).items()
        if isinstance(value, _SETTING) and not name.startswith("_") and name not in _NO_SETTING
    }  # fmt: skip



