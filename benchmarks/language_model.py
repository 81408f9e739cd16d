"""Do the passes choose better than chance on a trained plain language model, and do experts beat static pruning?

`python benchmarks/language_model.py` trains a small Llama (4 M parameters, about 15 minutes on one core, kept in
--folder for the next time), then runs three recipes of alternatives through `umcompress apply`. Printed: perplexity of
held-out text over that of the dense model, agreement and KL with the dense model, and the shares of parameters and
of work that are left.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from _results import record
from _small_llama import SCORED, train

Step = dict[str, Any]


def channels(name: str, keep_ratio: float, **options: Any) -> Step:
    return {"pass": "channel_prune", "name": name, "after": "baseline", "keep_ratio": keep_ratio, **options}


def depth(name: str, unit: str, **options: Any) -> Step:
    return {"pass": "layer_drop", "name": name, "after": "baseline", "unit": unit, "keep_ratio": 0.75, **options}


def heads(name: str, **options: Any) -> Step:
    return {"pass": "head_prune", "name": name, "after": "baseline", "keep_ratio": 0.67, **options}


def width() -> list[Step]:
    """Three quarters of the channels, then a half, chosen and repaired in every way."""
    steps = []
    for keep in (0.75, 0.5):
        steps += [channels(f"channels {keep} random {seed}", keep, score="random", seed=seed) for seed in range(3)]
        steps += [
            channels(f"channels {keep} magnitude", keep, score="magnitude"),
            channels(f"channels {keep} activation", keep),
            channels(f"channels {keep} global", keep, allocation="global"),
            channels(f"channels {keep} refit", keep, repair="least_squares"),
            channels(f"channels {keep} random refit", keep, score="random", repair="least_squares"),
            channels(f"channels {keep} reconstruction", keep, score="reconstruction", repair="least_squares"),
            channels(f"channels {keep} reconstruction global", keep, score="reconstruction", repair="least_squares",
                     allocation="global"),
        ]
    return steps


def parts() -> list[Step]:
    """A quarter of the blocks or of the branches; a third of the key-value groups."""
    steps = []
    for unit in ("block", "attention", "feed_forward"):
        steps += [depth(f"{unit} random {seed}", unit, score="random", seed=seed) for seed in range(3)]
        steps += [depth(f"{unit} last", unit, score="last"), depth(f"{unit} cosine", unit)]
        steps += [depth(f"{unit} greedy", unit, greedy=True)]
    steps += [heads(f"heads random {seed}", score="random", seed=seed) for seed in range(3)]
    return [*steps, heads("heads magnitude", score="magnitude"), heads("heads contribution")]


def experts(training: int) -> list[Step]:
    """Experts against static pruning with as many channels at work; both adapted alike."""
    steps: list[Step] = []
    for active, keep in ((8, 0.5), (4, 0.25)):
        split = {"pass": "moe_split", "layers": "all", "experts": 16, "active": active, "after": "baseline"}
        adapted = {"pass": "adapt", "steps": training, "batch_size": 4}
        static = {"parameters": ["*.mlp.*"]}
        steps += [
            channels(f"static {keep} refit", keep, repair="least_squares"),
            {**adapted, "name": f"static {keep} adapted", **static},
            {**split, "name": f"experts {active} of 16 zero", "partition": "importance", "router": "zero",
             "repair": "none"},
            {**split, "name": f"experts {active} of 16"},
            {"pass": "router_train", "name": f"experts {active} of 16 routers", "steps": training, "batch_size": 4},
            {**adapted, "name": f"experts {active} of 16 adapted", "after": f"experts {active} of 16"},
        ]
    # Finer experts, half at work in each: 22 of 64 are a third of three quarters, and the other quarter is always on.
    for name, options in (
        ("experts 16 of 32", {"experts": 32, "active": 16}),
        ("experts 32 of 64", {"experts": 64, "active": 32}),
        ("experts 22 of 64 shared quarter", {"experts": 64, "active": 22, "shared": 0.25}),
    ):
        steps += [
            {"pass": "moe_split", "layers": "all", "after": "baseline", "name": name, **options},
            {"pass": "adapt", "steps": training, "batch_size": 4, "name": f"{name} adapted"},
        ]
    return steps


def _dashed(step: Step) -> Step:
    return step | {key: step[key].replace(" ", "-") for key in ("name", "after") if key in step}


def run(
    folder: Path, name: str, steps: list[Step], tokens: int, text: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The report's steps. text: how the text is cut."""
    shared = {"data": str(folder / "text.txt"), **(text or {"held_out": 1 - SCORED, "window": 256})}
    recipe = {
        "model": str(folder / "model"),
        "calibration": {"task": "understanding", "samples": 64, "source": "perplexity"},
        "measure": {"speed": "off"},
        "evaluate": [{"perplexity": shared}, {"agreement": {**shared, "tokens": tokens}}],
        "steps": [_dashed(step) for step in steps],
    }
    path, out = folder / f"{name}.yaml", folder / name
    path.write_text(json.dumps(recipe, indent=1))
    subprocess.run([sys.executable, "-m", "umcompress", "apply", str(path), "-o", str(out)], check=True)
    found: list[dict[str, Any]] = json.loads((out / "report.json").read_text())["steps"]
    return found


def figures(steps: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    dense = steps[0]
    rows = {}
    for step in steps:
        text = step["evaluations"]["perplexity"]["understanding"]["numbers"]["perplexity"]["value"]
        whole = dense["evaluations"]["perplexity"]["understanding"]["numbers"]["perplexity"]["value"]
        same = step["evaluations"]["agreement"]["understanding"]
        rows[step["name"].replace("-", " ")] = {
            "perplexity/dense": text / whole, "agreement": same["value"], "kl": same["numbers"]["kl"]["value"],
            "parameters/dense": step["parameters"]["total"] / dense["parameters"]["total"],
            "MACs/dense": step["macs_per_token"]["understanding"] / dense["macs_per_token"]["understanding"],
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/language_model"), help="where everything is kept")
    parser.add_argument("--training", type=int, default=1000, help="steps that the model is trained for")
    parser.add_argument("--adapt", type=int, default=150, help="steps of router training and adaptation")
    parser.add_argument("--tokens", type=int, default=8192, help="positions of agreement")
    parser.add_argument("--only", choices=["width", "parts", "experts"])
    parser.add_argument("--record", action="store_true", help="append to results.md")
    given = parser.parse_args()
    if not (given.folder / "model" / "config.json").is_file():
        train(given.folder, given.training)
    recipes = {"width": width(), "parts": parts(), "experts": experts(given.adapt)}
    for name, steps in recipes.items():
        if given.only not in (None, name):
            continue
        rows = figures(run(given.folder, name, steps, given.tokens))
        for title, row in rows.items():
            print(f"{title:32}" + "".join(f"{key} {value:8.3f}  " for key, value in row.items()))
        if given.record:
            record("language_model", {"recipe": name, "training": given.training, "adapt": given.adapt}, rows)


if __name__ == "__main__":
    main()
