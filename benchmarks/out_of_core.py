"""How long does a checkpoint that does not fit into memory take, next to copying the bytes that are kept?

`python benchmarks/out_of_core.py --gigabytes 8` makes a random checkpoint of Llama-7B-shaped layers in bfloat16,
applies `layer_drop` 25 % and `channel_prune` 25 % (by magnitude) out of core, and a `layer_drop` calibrated on
16 texts of 128 tokens. Printed: seconds of writing and of the whole command over those of `cp` of the result, and
the peak resident memory of the command. With `--repair` the layers are as wide as those of Qwen2.5-7B, and the one
recipe is `channel_prune` 25 % with `repair: least_squares`, whose statistics are the largest that there are; beside
its peak stand the one that `umcompress plan` predicts, and what the sums of all layers would take in float64 at once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from _results import record

from umcompress.plan.command import plan as plan_command

VOCABULARY = 32000
TEXT = "a line of text with some words in it, over and over\n"


class Shape(NamedTuple):
    """Of a layer."""

    hidden: int
    intermediate: int
    heads: int


LLAMA, QWEN = Shape(4096, 11008, 32), Shape(3584, 18944, 28)


def make(folder: Path, gigabytes: float, of: Shape) -> int:
    """Write the checkpoint, a layer a shard; the number of its layers."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    hidden, intermediate = of.hidden, of.intermediate
    layer = 2 * (4 * hidden**2 + 3 * hidden * intermediate)
    count = max(4, round((gigabytes * 1e9 - 4 * VOCABULARY * hidden) / layer))
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": count, "num_attention_heads": of.heads,
        "num_key_value_heads": of.heads, "vocab_size": VOCABULARY, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    letters = Tokenizer(models.BPE({chr(code): code for code in range(32, 127)} | {"<unk>": 0}, [], unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words = PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="<unk>")  # type: ignore[no-untyped-call]
    words.save_pretrained(folder)
    weight_map: dict[str, str] = {}
    generator = torch.Generator().manual_seed(0)

    def shard(name: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        tensors = {}
        for key, shape in shapes.items():
            tensor = torch.empty(shape, dtype=torch.bfloat16)
            tensors[key] = tensor.fill_(1) if len(shape) == 1 else tensor.normal_(0, 0.02, generator=generator)
        save_file(tensors, folder / name, {"format": "pt"})
        weight_map.update(dict.fromkeys(shapes, name))

    shard("ends.safetensors", {
        "model.embed_tokens.weight": (VOCABULARY, hidden), "lm_head.weight": (VOCABULARY, hidden),
        "model.norm.weight": (hidden,),
    })
    for index in range(count):
        path = f"model.layers.{index}"
        square = {f"{path}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        wide = {f"{path}.mlp.{name}_proj.weight": (intermediate, hidden) for name in ("gate", "up")}
        norms = {f"{path}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
        shard(f"layer-{index:02d}.safetensors", square | wide | norms | {
            f"{path}.mlp.down_proj.weight": (hidden, intermediate),
        })
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return count


def run(model: Path, home: Path, name: str, step: dict[str, Any], text: Path) -> dict[str, float]:
    """One recipe out of core, then `cp` of what it wrote."""
    out = home / name
    calibration = {"task": "understanding", "samples": 16, "source": f"{Path(__file__).with_name('_text128.py')}:Text"}
    shutil.rmtree(out, ignore_errors=True)
    recipe = home / f"{name}.yaml"
    recipe.write_text(json.dumps({"model": str(model), "calibration": calibration, "steps": [step]}))
    predicted = plan_command(str(recipe), dtype="bfloat16").memory
    assert predicted is not None
    started = time.monotonic()
    command = [sys.executable, "-m", "umcompress", "apply", str(recipe), "-o", str(out), "--out-of-core"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"BENCHMARK_TEXT": str(text)})
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"{' '.join(command)} failed")
    whole = time.monotonic() - started
    report = json.loads((out / "report.json").read_text())
    copy = home / "copy"
    started = time.monotonic()
    subprocess.run(["cp", "-r", str(out / "model"), str(copy)], check=True)
    copied = time.monotonic() - started
    shutil.rmtree(copy)
    shutil.rmtree(out)
    note = next(note for note in report["notes"] if note.startswith("out of core"))
    written = float(note.split("written in ")[1].split(" s")[0])
    planned = sum(part["seconds"] for part in report["steps"])
    return {
        "write/cp": written / copied, "plan+write/cp": (planned + written) / copied, "command/cp": whole / copied,
        "cp_seconds": copied, "gigabytes": report["checkpoint"]["bytes"] / 1e9,
        "peak_gigabytes": usage.ru_maxrss * 1024 / 1e9, "predicted_gigabytes": predicted.out_of_core / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--home", type=Path, default=Path("runs/out_of_core"))
    parser.add_argument("--repair", action="store_true", help="wide layers, refitted")
    options = parser.parse_args()
    options.home = options.home.resolve()  # paths in a recipe are seen from its folder
    options.home.mkdir(parents=True, exist_ok=True)
    model, text = options.home / ("wide" if options.repair else "model"), options.home / "text.txt"
    shape = QWEN if options.repair else LLAMA
    text.write_text(TEXT * 200)
    if not (model / "model.safetensors.index.json").is_file():
        shutil.rmtree(model, ignore_errors=True)
        make(model, options.gigabytes, shape)
    layers = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    drop = {"pass": "layer_drop", "unit": "block", "drop_count": round(layers / 4)}
    steps = {
        "layer_drop_last": drop | {"score": "last"},
        "channel_prune_magnitude": {"pass": "channel_prune", "score": "magnitude", "keep_ratio": 0.75},
        "layer_drop_calibrated": drop,
    }
    if options.repair:
        steps = {"channel_prune_refitted": {"pass": "channel_prune", "keep_ratio": 0.75, "repair": "least_squares"}}
    found = {name: run(model, options.home, name, step, text) for name, step in steps.items()}
    for name, values in found.items():
        if options.repair:
            values["sums_at_once_gigabytes"] = layers * 8 * shape.intermediate**2 / 1e9
        print(name, {key: round(value, 3) for key, value in values.items()})
    record("out_of_core", {"gigabytes": options.gigabytes, "layers": layers}, found)


if __name__ == "__main__":
    main()
