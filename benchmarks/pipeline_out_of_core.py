"""How much memory does cutting a pipeline that does not fit take?

`python benchmarks/pipeline_out_of_core.py --gigabytes 8 --record` makes a Qwen-Image of random weights in bfloat16:
text encoder, transformer and autoencoder as wide as the released ones, with fewer layers and a small vocabulary. Then
`umcompress apply --out-of-core` drops a layer of the text encoder and a quarter of the transformer's blocks, both by
similarities that are measured on a prompt, and prunes a quarter of the channels by magnitude. Printed: the peak
resident memory of the command beside what `umcompress plan` predicts, and the size of what was read.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from _results import record

from umcompress.models.source import open_source
from umcompress.plan.command import plan as plan_command

LAYERS, BLOCK, LAYER, REST = 4, 0.68, 0.466, 0.5  # gigabytes of a block, of a layer, of everything else
TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
          "<|video_pad|>")  # fmt: skip
SHARD = 1_000_000_000  # bytes
VALUES = 1 << 24


def describe(folder: Path, blocks: int) -> None:
    """Everything of a pipeline but its weights."""
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    diffusers: Any = importlib.import_module("diffusers")
    letters: Any = bytes_to_unicode
    tokenizer = Qwen2Tokenizer(vocab={char: place for place, char in enumerate(letters().values())}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": list(TOKENS)})
    tokenizer.save_pretrained(folder / "tokenizer")
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    ids = {token: 256 + place for place, token in enumerate(TOKENS)}
    configs: dict[str, dict[str, Any]] = {
        "transformer": {
            "_class_name": "QwenImageTransformer2DModel", "attention_head_dim": 128, "axes_dims_rope": [16, 56, 56],
            "in_channels": 64, "out_channels": 16, "joint_attention_dim": 3584, "num_attention_heads": 24,
            "num_layers": blocks, "patch_size": 2,
        },
        "vae": {
            "_class_name": "AutoencoderKLQwenImage", "base_dim": 96, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2,
            "temperal_downsample": [False, True, True], "z_dim": 16, "latents_mean": [0.0] * 16,
            "latents_std": [1.0] * 16,
        },
        "text_encoder": {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "dtype": "bfloat16",
            "tie_word_embeddings": False, "image_token_id": ids["<|image_pad|>"],
            "video_token_id": ids["<|video_pad|>"], "vision_start_token_id": ids["<|vision_start|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
            "text_config": {
                "model_type": "qwen2_5_vl_text", "hidden_size": 3584, "intermediate_size": 18944,
                "num_hidden_layers": LAYERS, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 512,
                "max_position_embeddings": 4096, "bos_token_id": 256, "eos_token_id": ids["<|im_end|>"],
                "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [16, 24, 24]},
            },
            "vision_config": {
                "depth": 2, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
                "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
                "fullatt_block_indexes": [1],
            },
        },
    }
    for part, config in configs.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
    kinds = {"transformer": "QwenImageTransformer2DModel", "vae": "AutoencoderKLQwenImage",
             "scheduler": "FlowMatchEulerDiscreteScheduler"}  # fmt: skip
    index: dict[str, Any] = {name: ["diffusers", kind] for name, kind in kinds.items()}
    index |= {"text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
              "tokenizer": ["transformers", "Qwen2Tokenizer"], "_class_name": "QwenImagePipeline"}  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))


def fill(folder: Path) -> float:
    """Random weights in shards; their gigabytes."""
    import torch
    from safetensors.torch import save_file

    source = open_source(str(folder))
    model, total = source.skeleton(), 0
    drawn = torch.randn(VALUES, generator=torch.Generator().manual_seed(0)).bfloat16()
    for file, names in source.family.weight_files(model).items():
        part, whole = file.split("/")
        places: dict[str, str] = {}
        shard: dict[str, torch.Tensor] = {}
        for name, path in names.items():
            assert isinstance(path, str)
            shape = tuple(model.get_parameter(path).shape)
            count = int(torch.Size(shape).numel())
            values = drawn.repeat(-(-count // VALUES))[:count].view(shape)
            shard[name] = values * 0.02 if len(shape) > 1 else torch.ones(shape, dtype=torch.bfloat16)
            total += 2 * count
            if sum(one.nbytes for one in shard.values()) > SHARD or name == list(names)[-1]:
                there = f"{whole.removesuffix('.safetensors')}-{len(set(places.values())):05d}.safetensors"
                save_file(shard, folder / part / there, {"format": "pt"})
                places |= dict.fromkeys(shard, there)
                shard = {}
        (folder / part / f"{whole}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return total / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--home", type=Path, default=Path("runs/pipeline_out_of_core"))
    parser.add_argument("--record", action="store_true", help="append to results.md")
    options = parser.parse_args()
    shutil.rmtree(options.home, ignore_errors=True)
    model = options.home / "model"
    model.mkdir(parents=True)
    blocks = max(4, -int(-(options.gigabytes - LAYERS * LAYER - REST) // BLOCK))
    describe(model, blocks)
    size = fill(model)
    (options.home / "prompts.txt").write_text("a red cat\n")
    recipe = options.home / "recipe.yaml"
    recipe.write_text(json.dumps({
        "model": "model", "sampling": {"steps": 1, "guidance": 1.0, "height": 128, "width": 128},
        "calibration": {"task": "generation", "samples": 1, "data": "prompts.txt"},
        "steps": [
            {"pass": "layer_drop", "component": "understanding", "drop_count": 1},
            {"pass": "layer_drop", "component": "generation", "drop_count": blocks // 4},
            {"pass": "channel_prune", "component": "generation", "score": "magnitude", "keep_ratio": 0.75},
        ],
    }))  # fmt: skip
    predicted = plan_command(str(recipe), dtype="bfloat16").memory
    assert predicted is not None
    command = [sys.executable, "-m", "umcompress", "apply", str(recipe), "-o", str(options.home / "out"),
               "--out-of-core"]  # fmt: skip
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"{' '.join(command)} failed")
    report = json.loads((options.home / "out" / "report.json").read_text())
    found = {
        "read_gigabytes": size, "written_gigabytes": report["checkpoint"]["bytes"] / 1e9,
        "peak_gigabytes": usage.ru_maxrss * 1024 / 1e9, "predicted_gigabytes": predicted.out_of_core / 1e9,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
    }  # fmt: skip
    print({name: round(value, 3) for name, value in found.items()})
    shutil.rmtree(options.home)
    if options.record:
        record("pipeline_out_of_core", {"gigabytes": options.gigabytes, "layers": LAYERS, "blocks": blocks},
               {"Qwen-Image": found})  # fmt: skip


if __name__ == "__main__":
    main()
