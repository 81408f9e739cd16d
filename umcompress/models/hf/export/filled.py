"""A model of transformers whose layers differ in width, filled up with zeros to an ordinary one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from umcompress.checkpoint.writer import TensorToWrite
from umcompress.graph.model_graph import ModelFamily, trace_model
from umcompress.models.hf.export import mixtures, ordinary
from umcompress.models.hf.export.old_fields import with_old_fields
from umcompress.models.hf.layers.config_fields import owner_of
from umcompress.models.hf.load import weights
from umcompress.models.hf.load.skeleton import BASE_CONFIG, CONFIG_ERRORS, parameters_on_meta
from umcompress.models.hf.names import CONFIG, WEIGHTS
from umcompress.models.padded import NOTE, padded_weights, widest
from umcompress.models.plain_folder import Plain


def filled_folder(
    model: PreTrainedModel, family: ModelFamily, source: Path, values: Mapping[str, TensorToWrite] | None = None
) -> Plain | str:
    """The folder, or why there is none.  source: the folder that the model came from."""
    if type(model).is_custom_code() or mixtures.is_split(model):
        return "experts and code that came with a model cannot be filled up with zeros"
    config, width = ordinary.settled(model), 0
    graph = trace_model(model, family)
    for stack, path in graph.stacks.items():
        if (most := widest(model, family, stack)) == 0:
            continue
        part = ordinary.part_of(config, model.config, owner_of(model, path)[1]) or config
        ordinary.set_width(part, most, path)
        width = max(width, most)
    try:
        with parameters_on_meta():
            built = type(model)(config)
    except CONFIG_ERRORS as error:
        return f"transformers does not build it: {(str(error).splitlines() or [''])[0][:200]}"
    # A model of one dtype: what is added has the dtype of the rest.
    nn.Module.to(built, model.dtype)
    found = padded_weights(model, built, family, values)
    if isinstance(found, str):
        return found
    text = ordinary.as_text(with_old_fields(ordinary.content_of(config), source))
    return Plain(
        {WEIGHTS: weights.sources(built, found)}, {CONFIG: text}, frozenset({BASE_CONFIG}), exact=False,
        note=NOTE.format(width=width), loads_with="transformers",
    )  # fmt: skip
