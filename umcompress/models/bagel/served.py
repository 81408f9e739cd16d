"""A BAGEL as vLLM reads it: the language model that understands, with its vision tower.

vLLM's BAGEL answers questions about pictures and reads nothing of the generation stream, so it does not matter what was
cut there.  Where layers of the understanding stream differ, the folder lists them for our plug-in.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from umcompress.checkpoint.fill import sources
from umcompress.checkpoint.writer import TensorToWrite
from umcompress.models.bagel.config import BagelConfig
from umcompress.models.bagel.layer_list import layer_entry
from umcompress.models.bagel.load import skeleton
from umcompress.models.bagel.ordinary import CONFIG, TEXT_CONFIG, config_texts
from umcompress.models.bagel.served_experts import name_in_folder
from umcompress.models.plain_folder import Plain
from umcompress.models.vllm_plugin import LAYERS
from umcompress.rewrite.nn.absent import kept_task

BLOCKS = "language_model.model.layers"
WEIGHTS = "ema.safetensors"
_OF_GENERATION = ("time_embedder.", "vae2llm.", "llm2vae.", "latent_pos_embed.")
NOTE = "what vLLM's BAGEL reads, to answer questions about pictures: vllm serve FOLDER"
PLUG_IN = "; layers differ, so it needs umcompress installed beside vLLM"


def served_folder(model: nn.Module, folder: Path, values: Mapping[str, TensorToWrite] | None = None) -> Plain | str:
    """The folder, or why vLLM cannot read such a model.  Arguments as in `Family.plain`."""
    before = BagelConfig.from_folder(folder)
    if kept_task(model) == "generation":
        return "vLLM's BAGEL answers questions, and this one is specialized for generation"
    layers = [layer_entry(block, "understanding") for block in model.get_submodule(BLOCKS).children()]
    if reason := _unlike_the_layout(model, before, layers):
        return reason
    assert all(isinstance(layer, dict) for layer in layers)
    found: list[dict[str, Any]] = [layer for layer in layers if isinstance(layer, dict)]
    # Where all have experts: any width, as none is built.
    width = max(layer["channels"] for layer in found) or before.text.intermediate_size
    alike = all(layer == {"attention": True, "channels": width} for layer in found)
    texts = dict(config_texts(folder, before, len(found), width))
    config, text = json.loads(texts[CONFIG]), json.loads(texts[TEXT_CONFIG])
    if not alike:
        text[LAYERS] = found
    config |= {"llm_config": config["llm_config"] | text, "visual_gen": False}
    texts = {CONFIG: json.dumps(config, indent=2) + "\n", TEXT_CONFIG: json.dumps(text, indent=2) + "\n"}
    names = {
        name_in_folder(name): name for name in model.state_dict(keep_vars=True)
        if _is_read(name) and not name.startswith("vae.")
    }  # fmt: skip
    note = NOTE + ("" if alike else PLUG_IN)
    plain = Plain(sources(model, {WEIGHTS: names}, values), texts, sharded=False, note=note)
    return dataclasses.replace(plain, opens_here=False)


def _is_read(name: str) -> bool:
    return "_moe_gen" not in name and not name.startswith(_OF_GENERATION)


def _unlike_the_layout(model: nn.Module, before: BagelConfig, layers: list[dict[str, Any] | str]) -> str:
    """The first tensor that vLLM would build with another shape; nothing where there is none."""
    if reason := next((layer for layer in layers if isinstance(layer, str)), None):
        return reason
    wanted = {name: tuple(tensor.shape) for name, tensor in skeleton(before).state_dict(keep_vars=True).items()}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not _is_read(name) or name.startswith("vae.") or ".mlp." in name:
            continue
        # All layers are alike but for their feed-forwards, so any one stands for this one.
        like = f"{BLOCKS}.0.{name.split('.', 4)[4]}" if name.startswith(f"{BLOCKS}.") else name
        if wanted.get(like) != tuple(tensor.shape):
            return f"vLLM has no place for {name} of shape {list(tensor.shape)}: leave heads and the tower whole"
    tower = [name for name in wanted if name.startswith("vit_model.")]
    if gone := sorted(set(tower) - set(model.state_dict(keep_vars=True))):
        return f"the vision tower was cut ({gone[0]} is gone): leave it whole"
    return ""
