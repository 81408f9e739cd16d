"""A BAGEL folder with random weights: the layout of the built-in model, of which nothing has been trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from umcompress.evals.scenes.make_model.train import files
from umcompress.evals.scenes.tokenizer import build_tokenizer
from umcompress.models.bagel.config import BagelConfig
from umcompress.models.bagel.model import Bagel

TEXT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 4,
}  # fmt: skip
VISION = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
AUTOENCODER = {"ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "z_channels": 4}
DECODER = "language_model.model.layers"
VISION_TOWER = "vit_model.vision_model.encoder.layers"


def write_tiny_bagel(folder: Path, seed: int = 0, weights: bool = True, **text: int) -> Path:
    """Write the folder; `text` changes sizes of the decoder. Without `weights`: JSON files only."""
    folder.mkdir(parents=True, exist_ok=True)
    content = files()
    content["llm_config.json"] |= TEXT | text
    content["vit_config.json"] |= VISION
    content["extra.json"]["vae"] |= AUTOENCODER
    content["extra.json"]["sampling"] |= {"num_timesteps": 4, "cfg_interval": [0.4, 1.0]}
    for name, values in content.items():
        (folder / name).write_text(json.dumps(values, indent=2), encoding="utf-8")
    build_tokenizer().save_pretrained(folder)
    if weights:
        _write_weights(folder, seed)
    return folder


def _write_weights(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    model = Bagel(BagelConfig.from_folder(folder))
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    vae = {name.removeprefix("vae."): value for name, value in state.items() if name.startswith("vae.")}
    rest = {name: value for name, value in state.items() if not name.startswith("vae.")}
    save_file(vae, folder / "ae.safetensors", {"format": "pt"})
    save_file(rest, folder / "ema.safetensors", {"format": "pt"})


def write_recipe(folder: Path, model: Path | str, *steps: dict[str, Any], **keys: Any) -> Path:
    """A recipe of these steps; JSON is YAML."""
    path = folder / "recipe.yaml"
    small = [{"scenes": {"prompts": 2, "questions": 4}}]
    content = {"model": str(model), "evaluate": small, "steps": list(steps)} | keys
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


def linear(name: str, out: int, into: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def decoder_tensors(text: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the decoder's blocks, from the numbers of `llm_config` alone."""
    hidden, width = text["hidden_size"], text["intermediate_size"]
    head = hidden // text["num_attention_heads"]
    sizes = {"q": text["num_attention_heads"] * head, "k": text["num_key_value_heads"] * head}
    sizes["v"] = sizes["k"]
    wanted: dict[str, tuple[int, ...]] = {}
    for layer in range(text["num_hidden_layers"]):
        for stream in ("", "_moe_gen"):
            block = f"{DECODER}.{layer}"
            for norm in ("input_layernorm", "post_attention_layernorm"):
                wanted[f"{block}.{norm}{stream}.weight"] = (hidden,)
            for part, size in sizes.items():
                wanted |= linear(f"{block}.self_attn.{part}_proj{stream}", size, hidden)
            wanted |= linear(f"{block}.self_attn.o_proj{stream}", hidden, sizes["q"], bias=False)
            for norm in ("q_norm", "k_norm"):
                wanted[f"{block}.self_attn.{norm}{stream}.weight"] = (head,)
            for part in ("gate_proj", "up_proj"):
                wanted |= linear(f"{block}.mlp{stream}.{part}", width, hidden, bias=False)
            wanted |= linear(f"{block}.mlp{stream}.down_proj", hidden, width, bias=False)
    return wanted
