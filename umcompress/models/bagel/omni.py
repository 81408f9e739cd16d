"""A BAGEL whose feed-forwards differ by layer or stream, or are experts, as vLLM-Omni reads it: both tasks.

It is the folder of a plain BAGEL, and where it is none, `llm_config.json` lists the layers for our plug-in.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from umcompress.checkpoint.fill import sources
from umcompress.checkpoint.writer import TensorToWrite, in_memory
from umcompress.models.bagel.config import BagelConfig
from umcompress.models.bagel.layer_list import MODULES, layer_entry
from umcompress.models.bagel.load import WEIGHT_FILES, skeleton
from umcompress.models.bagel.ordinary import CONFIG, TEXT_CONFIG, config_texts
from umcompress.models.bagel.served_experts import name_in_folder
from umcompress.models.plain_folder import Plain
from umcompress.models.vllm_plugin import GENERATION, LAYERS
from umcompress.rewrite.nn.absent import kept_task

BLOCKS = "language_model.model.layers"
MAIN, AUTOENCODER = WEIGHT_FILES
NOTE = "what vLLM-Omni's BAGEL reads, for both tasks"
PLUG_IN = "; feed-forwards differ or are experts, so it needs umcompress installed beside vLLM-Omni"
_NORMS = {"understanding": "post_attention_layernorm", "generation": "post_attention_layernorm_moe_gen"}


def omni_folder(model: nn.Module, folder: Path, values: Mapping[str, TensorToWrite] | None = None) -> Plain | str:
    """The folder, or why vLLM-Omni cannot read such a model.  Arguments as in `Family.plain`."""
    before = BagelConfig.from_folder(folder)
    if (task := kept_task(model)) is not None:
        return f"it is specialized for {task}, and vLLM-Omni's BAGEL builds both tasks"
    layers: list[dict[str, Any]] = []
    for index, block in enumerate(model.get_submodule(BLOCKS).children()):
        entries = {stream: layer_entry(block, stream) for stream in MODULES}
        if reason := next((entry for entry in entries.values() if isinstance(entry, str)), None):
            return reason
        if not all(entry["attention"] for entry in entries.values() if isinstance(entry, dict)):
            return f"block {index} lost a stream's attention, and vLLM-Omni mixes both streams in one: keep attentions"
        own, generation = entries["understanding"], entries["generation"]
        assert isinstance(own, dict)
        layers.append({**own, GENERATION: generation})
    if reason := _no_place(model, before):
        return reason
    widths = {entry["channels"] for layer in layers for entry in (layer, layer[GENERATION])}
    alike = len(widths) == 1 and 0 not in widths
    texts = config_texts(folder, before, len(layers), max(widths) or before.text.intermediate_size)
    if not alike:
        texts = _with_layers(texts, layers)
    names: dict[str, dict[str, str]] = {MAIN: {}, AUTOENCODER: {}}
    for name in model.state_dict(keep_vars=True):
        file = AUTOENCODER if name.startswith("vae.") else MAIN
        names[file][name_in_folder(name.removeprefix(WEIGHT_FILES[file]))] = name
    weights = sources(model, names, values)
    weights[MAIN] |= _missing_norms(model, before, weights[MAIN]["language_model.model.norm.weight"].dtype)
    note = NOTE + ("" if alike else PLUG_IN)
    return dataclasses.replace(Plain(weights, texts, sharded=False, note=note), opens_here=False)


def _with_layers(texts: Mapping[str, str], layers: list[dict[str, Any]]) -> dict[str, str]:
    config, text = json.loads(texts[CONFIG]), json.loads(texts[TEXT_CONFIG]) | {LAYERS: layers}
    config["llm_config"] |= {LAYERS: layers}
    return {name: json.dumps(content, indent=2) + "\n" for name, content in ((CONFIG, config), (TEXT_CONFIG, text))}


def _missing_norms(model: nn.Module, before: BagelConfig, dtype: torch.dtype) -> dict[str, TensorToWrite]:
    """Norms that went with their feed-forward: vLLM-Omni builds them all the same, and reads none of these."""
    ones = in_memory(torch.ones(before.text.hidden_size, dtype=dtype))
    there = model.state_dict(keep_vars=True)
    count = len(model.get_submodule(BLOCKS))  # type: ignore[arg-type]
    wanted = [f"{BLOCKS}.{index}.{norm}.weight" for index in range(count) for norm in _NORMS.values()]
    return {name: ones for name in wanted if name not in there}


def _no_place(model: nn.Module, before: BagelConfig) -> str:
    """The first tensor that vLLM-Omni would build with another shape; nothing where there is none."""
    wanted = {name: tuple(tensor.shape) for name, tensor in skeleton(before).state_dict(keep_vars=True).items()}
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
    feed_forwards = tuple(f".{name}." for name in MODULES.values())
    for name, shape in found.items():
        if any(part in name for part in feed_forwards):
            continue
        # All layers are alike but for their feed-forwards, so the first one stands for each.
        like = f"{BLOCKS}.0.{name.split('.', 4)[4]}" if name.startswith(f"{BLOCKS}.") else name
        if wanted.get(like) != shape:
            return f"vLLM-Omni has no place for {name} of shape {list(shape)}: leave heads and the tower whole"
    if gone := sorted(name for name in wanted if not name.startswith(f"{BLOCKS}.") and name not in found):
        return f"{gone[0]} is gone, and vLLM-Omni has no number for that: leave the tower whole"
    return ""
