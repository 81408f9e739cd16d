"""Which channels to remove from a trained language model: how do ours compare with Torch-Pruning's?

`pip install torch-pruning`, then `python benchmarks/peer_torch_pruning.py` on the small Llama of language_model.py
(trained first where it is not there yet). The same channels of the feed-forwards may go, as many of them; both sides
see the same texts, and both results are scored alike, as folders that transformers loads. Printed: perplexity of
held-out text over that of the dense model.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _results import record
from _small_llama import SCORED, WINDOW, train
from language_model import channels, figures, run
from torch import Tensor, nn

KEPT = (0.75, 0.5)
SAMPLES = 64
# Some 256 tokens a text, as long as those that the model was trained on.
TEXT: dict[str, Any] = {"held_out": 1 - SCORED, "window": WINDOW, "sample_characters": 800}


def calibration(folder: Path) -> list[Tensor]:
    """The very texts that ours calibrate on, (1, T) ids each."""
    from transformers import AutoTokenizer

    from umcompress.evals.text.perplexity import Perplexity

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    drawn = Perplexity(data=folder / "text.txt", **TEXT).calibration_items("understanding", SAMPLES, 0)
    return [torch.tensor([tokenizer(item.text)["input_ids"]]) for item in drawn]


def loaded(folder: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder / "model", attn_implementation="eager")
    return model


def prune(folder: Path, importance: Any, keep: float, data: list[Tensor], gradients: bool) -> nn.Module:
    """Torch-Pruning on the feed-forwards' channels alone, an equal share of each layer.

    By its dependency graph, as its tutorial does step by step: `BasePruner` first lists the groups of the whole model,
    which had not ended after ten minutes on this one.
    """
    import torch_pruning as tp

    model: Any = loaded(folder)
    model.config.use_cache = False
    if gradients:
        for ids in data:
            (model(input_ids=ids, labels=ids).loss / len(data)).backward()
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=data[0])
    for layer in model.model.layers:
        first, width = layer.mlp.gate_proj, layer.mlp.gate_proj.out_features
        group = graph.get_pruning_group(first, tp.prune_linear_out_channels, list(range(width)))
        least = importance(group).argsort()[: width - round(keep * width)]
        graph.get_pruning_group(first, tp.prune_linear_out_channels, least.tolist()).prune()
    model.config.intermediate_size = round(keep * width)
    pruned: nn.Module = model.eval()
    return pruned


def perplexity(model: Path, folder: Path) -> float:
    """By our evaluation, of a folder that transformers loads."""
    options = f"perplexity:data={folder / 'text.txt'},held_out={1 - SCORED},window={WINDOW}"
    command = [sys.executable, "-m", "umcompress", "evaluate", str(model), "--evaluation", options, "--format", "json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    scores = json.loads(done.stdout)["steps"][0]["evaluations"]["perplexity"]["understanding"]
    found: float = scores["numbers"]["perplexity"]["value"]
    return found


def theirs(folder: Path, data: list[Tensor], dense: float) -> dict[str, dict[str, float]]:
    import torch_pruning as tp
    from transformers import AutoTokenizer

    kinds: dict[str, tuple[Callable[[], Any], bool]] = {
        "random": (tp.importance.RandomImportance, False),
        "group magnitude": (tp.importance.GroupMagnitudeImportance, False),
        "group Taylor": (tp.importance.GroupTaylorImportance, True),
    }
    rows = {}
    total = sum(p.numel() for p in loaded(folder).parameters())
    for keep in KEPT:
        for name, (kind, gradients) in kinds.items():
            torch.manual_seed(0)
            model: Any = prune(folder, kind(), keep, data, gradients)
            out = folder / "theirs" / f"{keep}-{name.replace(' ', '-')}"
            model.save_pretrained(out)
            AutoTokenizer.from_pretrained(folder / "model").save_pretrained(out)
            rows[f"Torch-Pruning {keep} {name}"] = {
                "perplexity/dense": perplexity(out, folder) / dense,
                "parameters/dense": sum(p.numel() for p in model.parameters()) / total,
            }  # fmt: skip
    return rows


def ours(folder: Path) -> list[dict[str, Any]]:
    steps = []
    for keep in KEPT:
        steps += [
            channels(f"{keep} random", keep, score="random"), channels(f"{keep} magnitude", keep, score="magnitude"),
            channels(f"{keep} activation", keep), channels(f"{keep} least squares", keep, repair="least_squares"),
        ]
    return run(folder, "peer", steps, 1024, TEXT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/language_model"), help="where everything is kept")
    parser.add_argument("--training", type=int, default=1000, help="steps that the model is trained for")
    parser.add_argument("--record", action="store_true", help="append to results.md")
    given = parser.parse_args()
    if importlib.util.find_spec("torch_pruning") is None:
        raise SystemExit("Torch-Pruning is not installed: pip install torch-pruning")
    if not (given.folder / "model" / "config.json").is_file():
        train(given.folder, given.training)
    data, dense = calibration(given.folder), perplexity(given.folder / "model", given.folder)
    rows = theirs(given.folder, data, dense)
    for name, row in figures(ours(given.folder)).items():
        rows[f"umcompress {name}"] = {key: row[key] for key in ("perplexity/dense", "parameters/dense")}
    for title, row in rows.items():
        print(f"{title:36}" + "".join(f"{key} {value:8.3f}  " for key, value in row.items()))
    if given.record:
        record("peer_torch_pruning", {"samples": SAMPLES, "training": given.training}, rows)


if __name__ == "__main__":
    main()
