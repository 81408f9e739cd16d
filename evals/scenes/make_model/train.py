"""Train `bagel-mini` from nothing: `python -m umcompress.evals.scenes.make_model.train --out DIR`.

Five stages, resumable and seeded: autoencoder, vision tower, understanding, reading, generation.  Writes the model
folder, the log of all losses, their curves as a picture, and the scores on 1 000 unseen prompts and 2 000
unseen questions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from umcompress.evals.scenes.evaluation import Scenes
from umcompress.evals.scenes.make_model.train_autoencoder import latent_statistics, train_autoencoder
from umcompress.evals.scenes.make_model.train_curves import draw_curves
from umcompress.evals.scenes.make_model.train_model import new_model, train_generation, train_understanding
from umcompress.evals.scenes.make_model.train_reading import train_reading
from umcompress.evals.scenes.make_model.train_vision import train_vision
from umcompress.evals.scenes.make_model.training import Log, Settings
from umcompress.evals.scenes.tokenizer import build_tokenizer
from umcompress.models.bagel.config import BagelConfig
from umcompress.models.bagel.family import BagelFamily
from umcompress.models.bagel.model import Bagel

AUTOENCODER: dict[str, Any] = {"ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": 1, "z_channels": 4}
TEXT: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 128,
    "intermediate_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
VISION: dict[str, Any] = {
    "model_type": "siglip_vision_model", "hidden_size": 128, "intermediate_size": 256,
    "num_attention_heads": 4, "num_hidden_layers": 3, "patch_size": 16, "image_size": 48,
}


def files(scale: float = 1.0, shift: float = 0.0) -> dict[str, dict[str, Any]]:
    """The JSON files of the model folder; `extra.json` holds what the official loaders hard-code."""
    tokenizer = build_tokenizer()
    names = {
        "bos_token_id": "<|im_start|>", "eos_token_id": "<|im_end|>",
        "start_of_image": "<|vision_start|>", "end_of_image": "<|vision_end|>",
    }
    rule = {"max_size": 48, "min_size": 48, "stride": 16}
    extra = {
        "latent_patch_size": 4, "max_latent_size": 3, "vit_max_num_patch_per_side": 3, "timestep_shift": 1.0,
        "vae": AUTOENCODER | {"scale_factor": scale, "shift_factor": shift},
        "special_tokens": {field: tokenizer.convert_tokens_to_ids(text) for field, text in names.items()},
        "vit_rule": rule, "vae_rule": rule,
        "sampling": {"image_size": 48, "num_timesteps": 21, "timestep_shift": 2.0, "cfg_text_scale": 3.0,
                     "cfg_interval": [0.0, 1.0]},
    }
    return {
        "llm_config.json": TEXT | {"vocab_size": len(tokenizer)}, "vit_config.json": VISION,
        "extra.json": extra,
    }


def configuration(scale: float = 1.0, shift: float = 0.0) -> BagelConfig:
    """The same as a BagelConfig."""
    content = files(scale, shift)
    extra = dict(content["extra.json"])
    extra["autoencoder"], extra["tokens"] = extra.pop("vae"), extra.pop("special_tokens")
    return BagelConfig.model_validate(
        {"text": content["llm_config.json"], "vision": content["vit_config.json"], **extra}
    )


def write_folder(model: Bagel, folder: Path) -> None:
    """The official layout, weights in bfloat16 (the autoencoder too: it is read as float32)."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config.autoencoder
    for name, content in files(config.scale_factor, config.shift_factor).items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    build_tokenizer().save_pretrained(folder)
    tensors = model.state_dict().items()
    state = {name: value.detach().to(torch.bfloat16).contiguous() for name, value in tensors}
    vae = {name.removeprefix("vae."): value for name, value in state.items() if name.startswith("vae.")}
    rest = {name: value for name, value in state.items() if not name.startswith("vae.")}
    save_file(vae, folder / "ae.safetensors", {"format": "pt"})
    save_file(rest, folder / "ema.safetensors", {"format": "pt"})


def train(settings: Settings, out: Path) -> Bagel:
    """All stages; returns the averaged model."""
    log = Log(out / "log.jsonl")
    autoencoder = train_autoencoder(configuration().autoencoder, settings, out, log)
    autoencoder.requires_grad_(False)
    scale, shift = latent_statistics(autoencoder, settings.seed)
    log.write("latents", 0, {"scale": scale, "shift": shift})
    model = new_model(configuration(round(scale, 4), round(shift, 4)), autoencoder, settings.seed)
    train_vision(model, settings, out, log)
    model = train_understanding(model, settings, out, log)
    model = train_reading(model, settings, out, log)
    return train_generation(model, settings, out, log)


def final_scores(folder: Path, out: Path, log: Log) -> dict[str, Any]:
    """Scores of the written folder, through the family's own loading and runner."""
    family = BagelFamily()
    evaluation = Scenes(prompts=1000, questions=2000, seed=7)
    scores = evaluation.run(family.runner(family.load(folder), folder), out / "scores", print)
    log.write("scores", 0, {str(task): score.value for task, score in scores.items()})
    return {task: score.json_values() for task, score in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, log and the model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: let torch choose)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    model = train(Settings(seed=options.seed), options.out)
    folder = options.out / "bagel-mini"
    write_folder(model, folder)
    draw_curves(options.out / "log.jsonl", options.out / "curves.png")
    scores = final_scores(folder, options.out, Log(options.out / "log.jsonl"))
    (options.out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    print(f"model in {folder}; next: umcompress evaluate {folder}")


if __name__ == "__main__":
    main()
