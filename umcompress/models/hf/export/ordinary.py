"""Whether an edited model is an ordinary model of its architecture, and the configuration that says so.

The configuration is derived from what the model has become, and then tried: a model built from it must have the same
tensors, buffers and settings, module by module. Nothing is taken for granted about what a field means.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from umcompress.checkpoint.writer import TensorToWrite
from umcompress.errors import ModelError
from umcompress.graph.model_graph import ModelFamily, ModelGraph, trace_model
from umcompress.models.hf.anatomy import attention
from umcompress.models.hf.export.old_fields import with_old_fields
from umcompress.models.hf.inputs import config_parts
from umcompress.models.hf.layers.config_fields import class_before, owner_of, width_field
from umcompress.models.hf.layers.known_fields import SHARED_WIDTH
from umcompress.models.hf.load import own_code, weights
from umcompress.models.hf.load.skeleton import BASE_CONFIG, CONFIG_ERRORS, build_own, parameters_on_meta
from umcompress.models.hf.load.unused import forget_predictors
from umcompress.models.hf.names import CONFIG, WEIGHTS
from umcompress.models.plain_folder import Plain

_SHOWN = 4


def plain_folder(
    model: PreTrainedModel, family: ModelFamily, source: Path, values: Mapping[str, TensorToWrite] | None = None
) -> Plain | str:
    """A folder that transformers loads by itself, or why there is none.

    source: the folder that the model came from. values: the tensors of a skeleton.
    """
    config, reasons = plain_config(model, family)
    if unread := own_code.why_transformers_fails(model):
        reasons = [f"transformers does not load the model's code by itself: {' and '.join(unread)}", *reasons]
    text = as_text(with_old_fields(content_of(config), source))
    if not reasons and not type(model).is_custom_code():
        # Not every field that an instance has is one that its file keeps; and some are refused when they are read.
        try:
            read = type(config).from_dict(json.loads(text), name_or_path=config.name_or_path)
            reasons = [] if _says_the_same(read, config) else list(_differences(model, read))
        except CONFIG_ERRORS as error:
            reasons = [f"transformers does not build it: {' '.join(str(error).split())[:200]}"]
    reasons = reasons or _unset(model, config)
    if reasons:
        return "; ".join(reasons)
    files = {WEIGHTS: weights.sources(model, values)}
    return Plain(files, {CONFIG: text}, frozenset({BASE_CONFIG}), loads_with="transformers")


# What an instance knows of kernels and of who wrote its file, none of which changes what is built.
_HOW_IT_RUNS = frozenset({
    "transformers_version", "_attn_implementation_internal", "_experts_implementation_internal",
})  # fmt: skip


def _says_the_same(one: Any, other: Any) -> bool:
    """Whether two configurations have the same attributes, those of their parts included: a class builds one model."""
    mine, theirs = ({k: v for k, v in vars(config).items() if k not in _HOW_IT_RUNS} for config in (one, other))
    if type(one) is not type(other) or mine.keys() != theirs.keys():
        return False
    return all(
        _says_the_same(value, theirs[name]) if isinstance(value, PreTrainedConfig)
        else type(value) is type(theirs[name]) and value == theirs[name]
        for name, value in mine.items()
    )  # fmt: skip


def _unset(model: PreTrainedModel, config: Any) -> list[str]:
    """What transformers by itself would make of code that came with the model, otherwise than we do."""
    if not type(model).is_custom_code():
        return []
    try:
        unset = own_code.unset_buffers(model, config)
    except ModelError as error:
        return [f"transformers does not build it without values: {error.found}"]
    more = "which the model's code computes in constructors only"
    return [f"transformers leaves {_listed(unset)} unset, {more}"] if unset else []


def content_of(config: Any) -> dict[str, Any]:
    """What is not as it is by default; of code that cannot be asked for defaults, everything."""
    try:
        found: dict[str, Any] = config.to_diff_dict()
    except Exception:  # a class that comes with a model may need arguments, and may raise anything without them
        if attention.known_code(type(config)):
            raise
        found = config.to_dict()
    return found


def as_text(content: dict[str, Any]) -> str:
    """A configuration as transformers writes it."""
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def plain_config(model: PreTrainedModel, family: ModelFamily) -> tuple[Any, list[str]]:
    """The configuration of the model as it is now, and why it does not say all; no reason: it is ordinary."""
    config, reasons = sized_config(model, family)
    # Layers may differ as the architecture has it: mixers without attention, dense ones before mixtures.
    differences = list(_differences(model, config))
    if not differences:
        return config, []
    as_before = settled(model)
    if not list(_differences(model, as_before)):
        return as_before, []
    return config, reasons or differences


def sized_config(model: PreTrainedModel, family: ModelFamily) -> tuple[Any, list[str]]:
    """The configuration with the model's own counts, and what of them differs layer by layer."""
    graph, config = trace_model(model, family), settled(model)
    reasons: list[str] = []
    for stack, path in graph.stacks.items():
        part = part_of(config, model.config, owner_of(model, path)[1])
        if part is None:
            part = config
            _set_layers(config, path, len(graph.blocks(stack=stack)))
        reasons += _hollow(graph, stack)
        reasons += _set_widths(part, graph, stack)
        reasons += _set_heads(part, graph, stack)
    return config, reasons


def _set_layers(config: Any, path: str, layers: int) -> None:
    """Of a stack that reads a copy of the whole configuration (T5): there an encoder's number may have no name."""
    for side, more in (("decoder", ()), ("encoder", ("num_layers",))):
        if side in path.split("."):
            fields = (f"num_{side}_layers", f"{side}_layers", *more)
            field = next((name for name in fields if isinstance(getattr(config, name, None), int)), None)
            if field is not None:
                setattr(config, field, layers)


def settled(model: PreTrainedModel) -> Any:
    """The model's configuration: numbers of layers are right already."""
    config = copy.deepcopy(model.config)
    config.__class__ = class_before(type(config))
    config.dtype = model.dtype
    config.architectures = [type(model).__name__]
    forget_predictors(model, config)
    return config


def part_of(ours: Any, whole: Any, wanted: Any) -> Any:
    """The copy, in `ours`, of the part `wanted` of `whole`; None where it is no part of it."""
    if wanted is whole:
        return ours
    for name in config_parts(whole):
        theirs = getattr(whole, name, None)
        if theirs is wanted or (theirs is not None and type(theirs) is type(wanted)):
            if theirs is not wanted:
                setattr(ours, name, copy.deepcopy(wanted))
            return getattr(ours, name)
        if theirs is not None and config_parts(theirs):
            found = part_of(getattr(ours, name), theirs, wanted)
            if found is not None:
                return found
    return None


def _hollow(graph: ModelGraph, stack: str) -> list[str]:
    """Layers from which a branch was dropped: all of an architecture's layers have the same ones."""
    kinds = {block.index: {branch.kind for branch in block.branches} for block in graph.blocks(stack=stack)}
    every = set().union(*kinds.values())
    return [
        f"layers {_listed(gone)} of the stack {stack} have no {kind.replace('_', '-')}"
        for kind in sorted(every) if (gone := [index for index, found in kinds.items() if kind not in found])
    ]  # fmt: skip


def _set_widths(config: Any, graph: ModelGraph, stack: str) -> list[str]:
    sites = graph.feed_forwards(stack=stack)
    branches = (branch for block in graph.blocks(stack=stack) for branch in block.branches)
    mixtures = {branch.block for branch in branches if branch.kind == "feed_forward" and graph.is_mixture(branch)}
    shared = {site.width for site in sites if site.block in mixtures}
    if len(shared) == 1:
        _set_shared(config, shared.pop())
    found = sorted({site.width for site in sites if site.block not in mixtures})
    if len(found) > 1:
        return [f"the feed-forwards of the stack {stack} have {_listed(found)} channels, layer by layer"]
    if found:
        set_width(config, found[0], graph.stacks[stack])
    return []


def _set_shared(config: Any, width: int) -> None:
    """The width of the expert that every token uses: a number of its own, or so many times that of the others."""
    each = getattr(config, "moe_intermediate_size", None)
    if hasattr(config, SHARED_WIDTH):
        setattr(config, SHARED_WIDTH, width)
    elif isinstance(each, int) and hasattr(config, "n_shared_experts") and width % each == 0:
        config.n_shared_experts = width // each


def set_width(config: Any, width: int, path: str) -> None:
    sides = (f"{side}_ffn_dim" for side in ("encoder", "decoder") if side in path.split("."))
    field = next((name for name in sides if hasattr(config, name)), None) or width_field(config)
    if field is not None:
        # A width that is left out is computed, so it is written only where it has to be.
        if getattr(config, field) is not None or width != 4 * config.hidden_size:
            setattr(config, field, width)
    elif hasattr(config, "mlp_ratio"):
        whole = width % config.hidden_size == 0 and isinstance(config.mlp_ratio, int)
        config.mlp_ratio = width // config.hidden_size if whole else width / config.hidden_size


def _set_heads(config: Any, graph: ModelGraph, stack: str) -> list[str]:
    sites = graph.attentions(stack=stack)
    shapes = {(site.query_heads, site.key_value_groups, site.head_dim) for site in sites}
    if len({(heads, groups) for heads, groups, _ in shapes}) > 1:
        listed = _listed([f"{heads}/{groups}" for heads, groups, _ in sorted(shapes)])
        return [f"the attentions of the stack {stack} have {listed} heads and groups, layer by layer"]
    widths = {head_dim for _, _, head_dim in shapes}
    for heads, groups, head_dim in shapes:
        _set_head_counts(config, heads, groups, head_dim if len(widths) == 1 else None)
    return []


def _set_head_counts(config: Any, heads: int, groups: int, head_dim: int | None) -> None:
    """head_dim: None where layers differ in it, as the architecture says by itself."""
    name = "num_attention_heads" if hasattr(config, "num_attention_heads") else "num_heads"
    if getattr(config, name, None) == heads:
        return
    setattr(config, name, heads)
    if hasattr(config, "num_key_value_heads"):
        config.num_key_value_heads = groups
    if head_dim is not None and not isinstance(getattr(type(config), "head_dim", None), property):
        config.head_dim = head_dim


def _differences(model: PreTrainedModel, config: Any) -> Iterator[str]:
    """What a model built from `config` has otherwise than `model`."""
    try:
        if type(model).is_custom_code():
            built = build_own(type(model), copy.deepcopy(config), Path(str(config.name_or_path)).parent)
        else:
            with parameters_on_meta():
                built = type(model)(copy.deepcopy(config))
    except (ModelError, *CONFIG_ERRORS) as error:
        yield f"transformers does not build it: {(str(error).splitlines() or [''])[0][:120]}"
        return
    built.train(model.training)
    ours, theirs = model.state_dict(keep_vars=True), built.state_dict(keep_vars=True)
    for names, what in ((theirs.keys() - ours.keys(), "it lacks"), (ours.keys() - theirs.keys(), "it has more than")):
        if names:
            yield f"{what} the architecture's {_listed(sorted(names))}"
    odd = [n for n in ours if n in theirs and ours[n].shape != theirs[n].shape]
    if odd:
        name, more = odd[0], f", nor {len(odd) - 1} other shapes" if len(odd) > 1 else ""
        yield f"its configuration cannot say that {name} is {list(ours[name].shape)}{more}"
    modules = dict(built.named_modules())
    for path, module in model.named_modules():
        if path in modules and (setting := differing_setting(module, modules[path])) is not None:
            there, here = getattr(modules[path], setting, None), getattr(module, setting, None)
            yield f"{path}.{setting} would be {there}, and is {here}"
            return


def differing_setting(ours: nn.Module, theirs: nn.Module, but: Collection[str] = ()) -> str | None:
    """The first number, flag, word or computed buffer that differs, those named in `but` left out."""
    for name, value in vars(theirs).items():
        if name.startswith("_") or name in but or not isinstance(value, (int, float, str, bool, type(None))):
            continue
        own = getattr(ours, name, None)
        kind: Any = type(theirs)
        if own != value and not read_later(kind, name):
            continue
        # A tensor where a new model has nothing is kept from a call (Qwen2.5-VL: how far positions lag behind tokens).
        if value is None and isinstance(own, torch.Tensor):
            continue
        if own != value:
            return name
    for name, buffer in theirs.named_buffers(recurse=False):
        own = getattr(ours, name, None)
        persistent = name not in theirs._non_persistent_buffers_set
        if isinstance(own, torch.Tensor) and not persistent and not torch.equal(own.cpu(), buffer.to(own.dtype).cpu()):
            return name
    return None


@cache
def read_later(cls: Any, name: str) -> bool:
    """Whether anything but a constructor may look at an attribute of modules of transformers."""
    if not attention.known_code(cls):
        return True
    own = [base for base in cls.__mro__ if attention.known_code(base)]
    methods = (one for base in own for key, one in vars(base).items() if key != "__init__" and inspect.isroutine(one))
    texts = (inspect.getsource(inspect.unwrap(one)) for one in methods if hasattr(inspect.unwrap(one), "__code__"))
    return any(f".{name}" in text or f'"{name}"' in text for text in texts)


def _listed(items: Sequence[object]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(map(str, items[:_SHOWN])) + more
