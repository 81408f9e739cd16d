"""From weight files to weight files: ours beside `cp`, a plain loop over safetensors, and mergekit.

    python benchmarks/files.py --gigabytes 4 [--rounds 5] [--mergekit runs/mergekit/bin/python] [--record]

mergekit has an environment of its own: `python -m venv runs/mergekit && runs/mergekit/bin/pip install mergekit`; left
out where none is named. A checkpoint of Llama-7B-shaped layers in bfloat16 (under 0.1 GB: of tiny ones, which show
that the script works and no speed) loses its last quarter of blocks, or a quarter of its channels by their weights.
Each round runs all in turn. Processor time, children included, and wall time over `cp` of the result, over the loop,
over mergekit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from _results import as_installed, record
from out_of_core import LLAMA, Shape, make

TINY = Shape(256, 688, 4)
# What a user would write: nothing checked, nothing recorded.
DROP = """
import json, re, shutil, sys
from pathlib import Path
from safetensors import safe_open
from safetensors.torch import save_file
old, new, left = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
new.mkdir()
places = {}
for file in sorted(old.glob("*.safetensors")):
    with safe_open(file, "pt") as tensors:
        kept = {n: tensors.get_tensor(n) for n in tensors.keys()
                if not (m := re.match(r"model.layers.(\\d+)[.]", n)) or int(m[1]) < left}
    if kept:
        save_file(kept, new / file.name, {"format": "pt"})
        places.update(dict.fromkeys(kept, file.name))
(new / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
config = json.loads((old / "config.json").read_text()) | {"num_hidden_layers": left}
(new / "config.json").write_text(json.dumps(config))
"""
PRUNE = """
import json, sys
from pathlib import Path
from safetensors import safe_open
from safetensors.torch import save_file
old, new, share = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
new.mkdir()
places, width = {}, 0
for file in sorted(old.glob("*.safetensors")):
    with safe_open(file, "pt") as tensors:
        kept = {n: tensors.get_tensor(n) for n in tensors.keys()}
    ends = {part: f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
    names = {part: next((n for n in kept if n.endswith(end)), None) for part, end in ends.items()}
    if names["down"]:
        gate, up, down = (kept[names[part]] for part in ("gate", "up", "down"))
        norms = gate.float().norm(dim=1) * up.float().norm(dim=1) * down.float().norm(dim=0)
        width = round(share * len(norms))
        index = norms.topk(width).indices.sort().values
        kept |= {names["gate"]: gate[index], names["up"]: up[index], names["down"]: down[:, index].contiguous()}
    save_file(kept, new / file.name, {"format": "pt"})
    places.update(dict.fromkeys(kept, file.name))
(new / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
config = json.loads((old / "config.json").read_text()) | {"intermediate_size": width}
(new / "config.json").write_text(json.dumps(config))
"""


class Took(NamedTuple):
    """Seconds."""

    processor: float
    wall: float


def took(command: Sequence[str], leaves: Path) -> Took:
    """Run a command that makes `leaves`, which is removed again."""
    started, before = time.monotonic(), os.times()
    subprocess.run(command, env=as_installed(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    after = os.times()
    wall = time.monotonic() - started
    shutil.rmtree(leaves)
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return Took(processor, wall)


def commands(home: Path, model: Path, layers: int, mergekit: Path | None) -> dict[str, dict[str, list[str]]]:
    """Row -> who -> the command that makes `home / "out"`."""
    out, left = str(home / "out"), layers - round(layers / 4)
    python = [sys.executable, "-P"]
    recipes = {
        "drop": {"pass": "layer_drop", "unit": "block", "score": "last", "drop_count": layers - left},
        "prune": {"pass": "channel_prune", "score": "magnitude", "keep_ratio": 0.75},
    }
    for name, step in recipes.items():
        (home / f"{name}.yaml").write_text(json.dumps({"model": str(model), "steps": [step]}))
    ours = {name: [*python, "-m", "umcompress", "apply", str(home / f"{name}.yaml"), "-o", out, "--out-of-core"]
            for name in recipes}  # fmt: skip
    found = {
        "layer drop": {
            "ours": ours["drop"], "ours, --link": [*ours["drop"], "--link"],
            "cp": ["cp", "-r", str(home / "dropped"), out], "loop": [*python, "-c", DROP, str(model), out, str(left)],
        },
        "channel prune": {"ours": ours["prune"], "loop": [*python, "-c", PRUNE, str(model), out, "0.75"]},
    }
    if mergekit is not None:
        slices = {"slices": [{"sources": [{"model": str(model), "layer_range": [0, left]}]}],
                  "merge_method": "passthrough", "dtype": "bfloat16"}  # fmt: skip
        (home / "mergekit.yaml").write_text(json.dumps(slices))
        found["layer drop"]["mergekit"] = [
            str(mergekit), "-m", "mergekit.scripts.run_yaml", str(home / "mergekit.yaml"), out, "--lazy-unpickle",
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--home", type=Path, default=Path("runs/files"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mergekit", type=Path, help="the Python of an environment that has it")
    parser.add_argument("--record", action="store_true", help="append the figures to results.md")
    options = parser.parse_args()
    home: Path = options.home.resolve()  # paths in a recipe are seen from its folder
    model = home / "model"
    if not (model / "model.safetensors.index.json").is_file():
        shutil.rmtree(model, ignore_errors=True)
        make(model, options.gigabytes, TINY if options.gigabytes < 0.1 else LLAMA)
    layers = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    shutil.rmtree(home / "out", ignore_errors=True)
    shutil.rmtree(home / "dropped", ignore_errors=True)
    dropped = [sys.executable, "-P", "-c", DROP, str(model), str(home / "dropped"), str(layers - round(layers / 4))]
    subprocess.run(dropped, check=True)
    rows: dict[str, dict[str, float]] = {}
    for row, who in commands(home, model, layers, options.mergekit).items():
        timed = [{name: took(command, home / "out") for name, command in who.items()} for _ in range(options.rounds)]
        for one, other in ((one, other) for one in who for other in who if "ours" in one and "ours" not in other):
            ratios = [
                [getattr(round_[one], clock) / getattr(round_[other], clock) for round_ in timed]
                for clock in Took._fields
            ]
            name = f"{row}: {one} over {other}"
            rows[name] = dict(zip(Took._fields, map(statistics.median, ratios), strict=True))
            print(f"{name:45s}", *(f"{key} {value:.2f}" for key, value in rows[name].items()), flush=True)
    if options.record:
        record("files", {"gigabytes": options.gigabytes, "rounds": options.rounds, "layers": layers}, rows)


if __name__ == "__main__":
    main()
