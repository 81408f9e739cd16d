"""The configuration of a model that is no ordinary one: what its layers are, and that transformers must refuse it.

transformers has a schema for layers that differ, and refuses to build a model from it where an architecture's layers
are alike: better than one with weights at random where there are none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from umcompress.graph.model_graph import ModelFamily, ModelGraph, trace_model
from umcompress.graph.sites import AttentionSite
from umcompress.models.hf.export.old_fields import with_old_fields
from umcompress.models.hf.export.ordinary import as_text, content_of, plain_config
from umcompress.models.hf.inputs import config_parts
from umcompress.models.hf.layers.config_fields import owner_of, width_field
from umcompress.models.hf.layers.known_fields import SHARED_WIDTH, WIDTHS
from umcompress.models.hf.load.skeleton import BASE_CONFIG, config_file
from umcompress.models.hf.names import CONFIG

_READ_BY_ALL = "tie_word_embeddings"
# transformers says of this that it is not supported, before it looks at anything else: so its error tells what to do.
_TOLD = {"attn_implementation": "load_it_with_umcompress"}


def own_configs(model: PreTrainedModel, family: ModelFamily, source: Path) -> dict[str, str]:
    """Files of a model that is no ordinary one: what it came from, and a configuration that tells its layers.

    transformers has a schema for layers that differ, and refuses to build a model from it: better than one with
    weights at random where there are none.
    """
    config, _ = plain_config(model, family)
    written = with_old_fields(json.loads(as_text(content_of(config))), source)
    _add_layers(written, model, family)
    return {BASE_CONFIG: config_file(source).read_text(encoding="utf-8"), CONFIG: as_text(written | _TOLD)}


def _add_layers(written: dict[str, Any], model: PreTrainedModel, family: ModelFamily) -> None:
    """transformers' own schema for layers that differ, in the parts that the stacks read."""
    graph, told = trace_model(model, family), False
    for stack, path in graph.stacks.items():
        config = owner_of(model, path)[1]
        if layers := _layers(graph, stack, config):
            part, told = _json_part(written, model.config, config), True
            told_already = part.get("per_layer_config") or {}
            # An encoder and a decoder may be told of in one place.
            part["per_layer_config"] = told_already | {
                index: told_already.get(index, {}) | entry for index, entry in layers.items()
            }
    if graph.stacks:
        # Not all of that makes transformers refuse it: it would build another model, or one with weights at random.
        config = owner_of(model, graph.stacks[graph.family.main_stack])[1]
        part = _json_part(written, model.config, config)
        layers = part.get("per_layer_config") or {}
        # Every model reads this when it is built, and none may once it is said of a layer; tokenizers do not. Where the
        # whole model alone has it, nothing of it can be said of a layer; what is said of others then has to do.
        if hasattr(config, _READ_BY_ALL) or not told:
            marked = {_READ_BY_ALL: not getattr(config, _READ_BY_ALL, False)}
            part["per_layer_config"] = layers | {"0": layers.get("0", {}) | marked}


def _layers(graph: ModelGraph, stack: str, config: Any) -> dict[str, dict[str, Any]]:
    layers: dict[str, dict[str, Any]] = {}
    widths = {site.index: site.width for site in graph.feed_forwards(stack=stack)}
    heads = {site.index: site for site in graph.attentions(stack=stack)}
    split = {site.index for site in graph.experts(stack=stack)}
    field = width_field(config) or ("mlp_ratio" if hasattr(config, "mlp_ratio") else WIDTHS[0])
    for block in graph.blocks(stack=stack):
        kinds = {branch.kind for branch in block.branches}
        entry: dict[str, Any] = {}
        if len(set(widths.values())) > 1 and block.index in widths:
            entry[WIDTHS[0] if field == "mlp_ratio" else field] = widths[block.index]
        entry |= _head_entry(heads.get(block.index), list(heads.values()))
        # A size of nothing as well: readers that do not know `skip` must not take the layer for a whole one.
        if "attention" not in kinds:
            entry |= {"skip": ["attention"]}
            # Falcon's configuration divides by its heads when it is read.
            if not isinstance(getattr(type(config), "head_dim", None), property):
                entry |= {"num_attention_heads": 0, "num_key_value_heads": 0}
        if "feed_forward" not in kinds:
            entry |= {"skip": [*entry.get("skip", ()), "mlp"], field: 0}
        if block.index in split:
            # No channels of the dense kind: else transformers would load it with weights at random in their place.
            entry[field] = 0
            if hasattr(config, SHARED_WIDTH):
                entry[SHARED_WIDTH] = 0
        # transformers refuses to read a configuration that says of one layer what it says of no model.
        if entry := {key: value for key, value in entry.items() if key == "skip" or hasattr(config, key)}:
            layers[str(block.index)] = entry
    return layers


def _head_entry(site: AttentionSite | None, every: Sequence[AttentionSite]) -> dict[str, int]:
    shapes = {(other.query_heads, other.key_value_groups) for other in every}
    if site is None or len(shapes) < 2:
        return {}
    return {"num_attention_heads": site.query_heads, "num_key_value_heads": site.key_value_groups}


def _json_part(written: dict[str, Any], whole: Any, wanted: Any) -> dict[str, Any]:
    for name in config_parts(whole):
        if getattr(whole, name, None) is wanted and isinstance(written.get(name), dict):
            found: dict[str, Any] = written[name]
            return found
    return written
