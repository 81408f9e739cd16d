"""A plain Llama and a Qwen3: split, trained, exported by one recipe; run by a process that knows transformers only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from hf_models import VOCABULARY, write_folder, write_recipe
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from umcompress.cli.main import main

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODELS = {
    "llama": (lambda: LlamaForCausalLM(LlamaConfig(**SIZES)), "all", "MixtralForCausalLM"),
    "qwen3": (lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8)), "inner", "Qwen3MoeForCausalLM"),
}
FRESH = """
import json, sys, torch
from transformers import AutoModelForCausalLM
assert "umcompress" not in sys.modules
ids = torch.tensor([[1, 40, 41, 7, 60, 12, 33, 90]])
settings = dict(max_new_tokens=8, do_sample=False, return_dict_in_generate=True, output_logits=True, eos_token_id=None)
found = {}
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        cached, plain = (model.generate(ids, use_cache=cache, **settings) for cache in (True, False))
    worst = max(float((a - b).abs().max()) for a, b in zip(cached.logits, plain.logits, strict=True))
    found[folder] = {"class": type(model).__name__, "worst": worst, "tokens": cached.sequences.shape[1],
                     "only_dense": getattr(model.config, "mlp_only_layers", None)}
print(json.dumps(found))
"""


def split_and_trained(name: str, tmp_path: Path) -> Path:
    """The model that a run wrote."""
    make, layers, _ = MODELS[name]
    tmp_path.mkdir()
    folder = write_folder(make(), tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{i}: the cat sat on a mat and the dog ran far away\n" for i in range(60)))
    split = {"pass": "moe_split", "experts": 8, "active": 4, "layers": layers, "weighting": "softmax"}
    recipe = write_recipe(
        tmp_path, folder, split,
        {"pass": "router_train", "steps": 10, "batch_size": 4}, {"pass": "adapt", "steps": 50, "batch_size": 4},
        evaluate=[{"perplexity": {"data": str(text), "window": 32, "limit": 4, "sample_characters": 60}}],
        calibration={"task": "understanding", "samples": 24, "source": "perplexity"},
    )  # fmt: skip
    assert main(["apply", str(recipe), "-o", str(tmp_path / "run")]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["checkpoint"]["loads_with"] == "transformers"
    perplexity = [
        step["evaluations"]["perplexity"]["understanding"]["numbers"]["perplexity"]["value"]
        for step in report["steps"]
    ]
    assert perplexity[3] < perplexity[1]  # random text teaches little, but adaptation must not make it worse
    return tmp_path / "run" / "model"


def test_split_trained_exported_and_generating_elsewhere(tmp_path: Path) -> None:
    folders = {name: str(split_and_trained(name, tmp_path / name)) for name in MODELS}
    command = [sys.executable, "-c", FRESH, *folders.values()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.splitlines()[-1])
    for name, folder in folders.items():
        found = theirs[folder]
        assert found["class"] == MODELS[name][2] and found["tokens"] == 16 and found["worst"] < 1e-4
        assert found["only_dense"] == ([0, 3] if name == "qwen3" else None)
