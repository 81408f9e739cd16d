"""Is a search better than cutting every layer alike, at equal size?

`python benchmarks/search.py` searches on the built-in model and on a small Llama (trained first, kept in --folder), at
two budgets each, runs the recipe of the front that weighs both tasks alike (--all: each one) and the uniform recipe of
the same size, and prints the change of each task's held-out loss, paired over the items. `--model built-in` or `--model
llama` does one of them. --record appends to results.md and writes docs/search-figures.md, of the models that were asked
for. Choices are scored on other
items than those that judge the recipes. What is kept in --folder is not done again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from _results import record
from _small_llama import SCORED, SMALLER, train

from umcompress.documents.search import Candidate, Search

BUDGETS = {
    "built-in": ("active.generation=0.8", "active.generation=0.65"), "llama": ("parameters=0.75", "parameters=0.6"),
}  # fmt: skip
CHOICES = [
    {"pass": "layer_drop", "name": "no-attention", "unit": "attention", "drop_count": 1},
    {"pass": "layer_drop", "name": "no-feed-forward", "unit": "feed_forward", "drop_count": 1},
    *({"pass": "channel_prune", "name": f"channels-{round(100 * keep)}", "keep_ratio": keep, "repair": "least_squares"}
      for keep in (0.75, 0.5, 0.25)),
]  # fmt: skip
SAMPLE = 800  # characters of a text
WINDOW = 128
PAGE = Path(__file__).parent.parent / "docs" / "search-figures.md"


def llama_recipe(folder: Path, training: int) -> Path:
    """Train the model where it is not there; texts to calibrate and choose on, others to judge by."""
    if not (folder / "model" / "config.json").is_file():
        train(folder, training, SMALLER, WINDOW)
    text = (folder / "text.txt").read_text(encoding="utf-8")
    learnt = int(len(text) * (1 - SCORED))
    for name, part in {"calibration": text[:learnt], "held-out": text[learnt:]}.items():
        pieces = [part[start : start + SAMPLE].strip() for start in range(0, len(part) - SAMPLE, SAMPLE)]
        rows = "".join(json.dumps({"text": piece}) + "\n" for piece in pieces if piece)
        (folder / f"{name}.jsonl").write_text(rows, encoding="utf-8")
    recipe = {
        "model": str(folder / "model"),
        "calibration": {"data": str(folder / "calibration.jsonl"), "samples": 64},
        "evaluate": [{"task_loss": {"data": str(folder / "held-out.jsonl"), "items": 128}}],
        "steps": CHOICES,
    }
    path = folder / "search.yaml"
    path.write_text(json.dumps(recipe, indent=1), encoding="utf-8")
    return path


def row(one: Candidate) -> dict[str, float]:
    """Size, and what the losses came to, as figures."""
    assert one.result is not None
    figures = {f"{measure} left": share for measure, share in one.shares.items()}
    for task, change in one.result.changes.items():
        unpruned = one.result.scores[task].value - change.value
        figures |= {f"{task} loss": change.value, f"{task} ±": (change.high - change.low) / 2,
                    f"{task} %": 100 * change.value / unpruned}  # fmt: skip
    return figures


def searched(recipe: str, budget: str, given: argparse.Namespace, out: Path) -> dict[str, dict[str, float]]:
    run = "all" if given.all else "middle"
    command = ["search", recipe, "--budget", budget, "--items", str(given.items), "--run", run, "--set",
               "measure.speed=off", "--set", f"evaluate.0.task_loss.items={given.judged}", "-o", str(out)]  # fmt: skip
    # What the command prints is in the files that it writes; what it is at, it tells on the other stream.
    subprocess.run([sys.executable, "-m", "umcompress", *command], check=True, stdout=subprocess.DEVNULL)
    done = Search.model_validate_json((out / budget / "search.json").read_text(encoding="utf-8"))
    rows = {}
    for point in done.front:
        weights = " ".join(f"{task} {weight:g}" for task, weight in point.weights.items())
        for kind, one in ((f"found, {weights}", point), ("every layer alike", point.uniform)):
            if one is not None and one.result is not None:
                rows[f"{budget}, {kind}"] = row(one)
    return rows


def write_page(found: Mapping[str, Mapping[str, Mapping[str, float]]], given: argparse.Namespace) -> None:
    """docs/search-figures.md.  found: by model the rows."""
    lines = [
        "# What a search finds", "",
        "Written by `python benchmarks/search.py --all --record`: recipes of `umcompress search`, and beside each the",
        "one that cuts every layer alike to the same size. Changes are of the held-out loss of each task, paired over",
        f"at most {given.judged} items that scored no choice (as many as there are), ± half of the 95 % interval;",
        f"at most {given.items} items of each task scored the choices. How it works: [sweeps.md](sweeps.md).",
    ]
    for model, rows in found.items():
        tasks = [key.removesuffix(" loss") for key in next(iter(rows.values())) if key.endswith(" loss")]
        lines += ["", f"## {model}", "", f"| budget | left | {' | '.join(f'{task} loss' for task in tasks)} |",
                  f"| --- | ---: |{' ---: |' * len(tasks)}"]  # fmt: skip
        for title, figures in rows.items():
            left = next(value for key, value in figures.items() if key.endswith(" left"))
            cells = [
                f"{figures[f'{task} loss']:+.3g} ±{figures[f'{task} ±']:.2g} ({figures[f'{task} %']:+.3g} %)"
                for task in tasks
            ]
            lines.append(f"| {title} | {left:.4f} | {' | '.join(cells)} |")
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/search"), help="where everything is kept")
    parser.add_argument("--llama", type=Path, help="the small Llama's folder; default: in --folder")
    parser.add_argument("--training", type=int, default=400, help="steps that the small Llama is trained for")
    parser.add_argument("--items", type=int, default=512, help="items of each task that a choice is scored on")
    parser.add_argument("--judged", type=int, default=512, help="items of each task that the recipes are judged on")
    parser.add_argument("--all", action="store_true", help="run each recipe of the front")
    parser.add_argument("--model", choices=list(BUDGETS))
    parser.add_argument("--record", action="store_true", help="append to results.md")
    given = parser.parse_args()
    kept = dict[str, dict[str, dict[str, float]]]()
    for name, budgets in BUDGETS.items():
        if given.model not in (None, name):
            continue
        llama = name == "llama"
        recipe = str(llama_recipe(given.llama or given.folder / "small-llama", given.training)) if llama else "search"
        for budget in budgets:
            # One folder a model: what each choice costs alone is measured once.
            rows = searched(recipe, budget, given, given.folder / name)
            for title, figures in rows.items():
                print(f"{title:48}" + "".join(f"{key} {value:.4g}  " for key, value in figures.items()), flush=True)
            kept.setdefault(name, {}).update(rows)
            if given.record:
                record("search", {"model": name, "items": given.items, "judged": given.judged}, rows)
    if given.record:
        write_page(kept, given)


if __name__ == "__main__":
    main()
