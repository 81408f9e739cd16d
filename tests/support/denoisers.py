"""The tiny denoisers as folders and models: opened, edited, run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from pipeline_models import awaken
from pipeline_zoo import ZOO, Denoiser
from torch import Tensor, nn

from umcompress.documents.plan import Edit, KeepHeads, Plan
from umcompress.graph.model_graph import ModelGraph, trace_model
from umcompress.graph.sites import AttentionSite
from umcompress.models.source import Source, open_source
from umcompress.rewrite.apply import rewrite


@cache
def stored(name: str) -> Source:
    """A folder whose index has nothing but the denoiser."""
    import diffusers

    denoiser = next(one for one in ZOO if one.name == name)
    folder = Path(mkdtemp()) / "pipeline"
    torch.manual_seed(0)
    model = getattr(diffusers, denoiser.kind)(**denoiser.config)
    awaken(model)
    model.save_pretrained(folder / "transformer")
    index = {"_class_name": "DiffusionPipeline", "transformer": ["diffusers", denoiser.kind]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return open_source(str(folder))


def output(denoiser: Denoiser, model: Any) -> Tensor:
    with torch.no_grad():
        found = model(**denoiser.inputs(), return_dict=False)[0]
    tensor: Tensor = found[0] if isinstance(found, list | tuple) else found
    return tensor


def edited(source: Source, edits: Sequence[Edit]) -> nn.Module:
    model = source.load()
    rewrite(model, source.family, [Plan(pass_name="test", edits=tuple(edits))])
    return model


def traced(source: Source) -> ModelGraph:
    return trace_model(source.skeleton(), source.family)


def near(left: Tensor, right: Tensor) -> bool:
    return float((left - right).abs().max()) <= 1e-5 * max(1.0, float(right.abs().max()))


def second_head_away(site: AttentionSite) -> KeepHeads:
    """All but the second key-value group; of a single group, all but its second query head."""
    if site.key_value_groups > 1:
        groups = tuple(group for group in range(site.key_value_groups) if group != 1)
        return KeepHeads(site=site.path, component="generation", key_value_groups=groups)
    heads = tuple(head for head in range(site.query_heads) if head != 1)
    return KeepHeads(site=site.path, component="generation", query_heads=heads)
