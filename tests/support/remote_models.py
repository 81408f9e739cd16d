"""Folders of models that bring their own Python code, as repositories on the hub have them.

The code is in tests/support/data/remote: written as for transformers 4, imports a helper beside it, knows nothing of
transformers' attention interface.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from hf_models import randomise, tokenizer
from safetensors.torch import save_file

from umcompress.models.source import open_source

CODE = Path(__file__).parent / "data" / "remote"
AUTO_MAP = {
    "AutoConfig": "configuration_toy.ToyConfig", "AutoModel": "modeling_toy.ToyModel",
    "AutoModelForCausalLM": "modeling_toy.ToyForCausalLM",
}  # fmt: skip
FILES = ("configuration_toy", "modeling_toy", "toy_rotary")


RESTORED = "elif isinstance(module, ToyRotary): module.inv_freq.data.copy_(module.frequencies())"


def write_code(folder: Path, *, rest: str = "-1", post_init: bool = True, restored: bool = True) -> None:
    """rest: how the attention says the width of its heads together.

    restored: computed buffers are computed again where transformers 5 asks for it, and not in constructors alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        text = (CODE / f"{name}.py.txt").read_text(encoding="utf-8").replace("HEADS_WIDTH", rest)
        text = text.replace("POST_INIT", "self.post_init()" if post_init else "self.training = False")
        text = text.replace("BUFFERS_AGAIN", RESTORED if restored else "")
        (folder / f"{name}.py").write_text(text, encoding="utf-8")


def write_toy(folder: Path, *, rest: str = "-1", post_init: bool = True, restored: bool = True, **config: Any) -> Path:
    """A folder with code, configuration, random weights and a tokenizer; nothing is left imported."""
    write_code(folder, rest=rest, post_init=post_init, restored=restored)
    model = own_model(folder, **config)
    state = model.state_dict()
    if config.get("tie_word_embeddings"):
        del state["lm_head.weight"]
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    content = model.config.to_dict() | {"auto_map": AUTO_MAP, "architectures": ["ToyForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    tokenizer().save_pretrained(folder)
    return folder


def own_model(folder: Path, **config: Any) -> Any:
    """The model of the folder's code with random weights, imported by Python's own means."""
    name = f"toy_{abs(hash(str(folder)))}"
    package = ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package
    try:
        modeling = importlib.import_module(f"{name}.modeling_toy")
        settings = importlib.import_module(f"{name}.configuration_toy").ToyConfig(**config)
        torch.manual_seed(0)
        if config.get("tie_word_embeddings"):
            modeling.ToyForCausalLM._tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
        model = modeling.ToyForCausalLM(settings)
    finally:
        for loaded in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
            del sys.modules[loaded]
    randomise(model)
    if config.get("tie_word_embeddings"):
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.eval()


SEEING = {"AutoConfig": "configuration_toyv.ToyVConfig", "AutoModelForCausalLM": "modeling_toyv.ToyVChatModel"}


def write_seeing_toy(folder: Path) -> Path:
    """A model with a vision tower, configured by parts that no class declares; random weights, no processor."""
    write_code(folder)
    for name in ("configuration_toyv", "modeling_toyv"):
        (folder / f"{name}.py").write_text((CODE / f"{name}.py.txt").read_text(encoding="utf-8"), encoding="utf-8")
    content = {"model_type": "toy_chat", "architectures": ["ToyVChatModel"], "auto_map": SEEING}
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    tokenizer().save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    shapes = open_source(str(folder), trust_remote_code=True).skeleton().state_dict()
    tensors = {name: torch.randn(tensor.shape, generator=generator) * 0.2 for name, tensor in shapes.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder
