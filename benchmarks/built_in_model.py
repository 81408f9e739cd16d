"""Score the built-in model, run its two recipes, and write what came out into README and docs.

    python benchmarks/built_in_model.py --runs runs          # what is there already is not run again
    python benchmarks/built_in_model.py --runs runs --write  # tables, the printed report, the picture of samples

It also prints what steps are above others, paired, for the recipe of experts and for runs of it in RUNS/seed-*, as of

    umcompress apply bagel-mini-moe --set steps.2.seed=1 --set steps.7.seed=1 -o runs/seed-1

The recipe of experts is the longest of the three runs.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[1]
README, EXPERTS, MODEL = ROOT / "README.md", ROOT / "docs" / "experts.md", ROOT / "docs" / "bagel-mini.md"
# Rows of the table of experts: what is at work, the step as it is cut, the same adapted.
ROWS = (
    ("all (dense)", "baseline", None),
    ("half, the same for all tokens, plain", "static-half", None),
    ("half, the same for all tokens, refitted", "static-half-refit", "static-half-adapted"),
    ("half, 32 experts as the study starts", "study-32-16", "study-32-16-adapted"),
    ("half, 32 experts", "split-32-16", "adapted-32-16"),
    ("half, 48 experts and a shared quarter", "split-48-16-shared", "adapted-48-16-shared"),
    ("a quarter, the same for all tokens, refitted", "static-quarter-refit", "static-quarter-adapted"),
    ("a quarter, 32 experts", "split-32-8", "adapted-32-8"),
)
SHOWN = (
    ("dense", "baseline"), ("half static", "static-half"), ("half, refitted", "static-half-refit"),
    ("experts, half at work", "split-48-16-shared"), ("experts, adapted", "adapted-48-16-shared"),
)
# Pairs of steps whose difference the pages state.
PAIRS = (
    ("static-half-refit", "static-half"), ("split-32-16", "static-half-refit"), ("split-32-16", "baseline"),
    ("adapted-32-16", "static-half-adapted"), ("adapted-32-16", "baseline"), ("split-48-16-shared", "split-32-16"),
    ("adapted-48-16-shared", "static-half-adapted"), ("adapted-48-16-shared", "baseline"),
    ("adapted-32-8", "static-quarter-adapted"),
)
HEAD = "| generation channels at work | untrained: score | loss | adapted: score | loss |"
TILE, LABEL, GAP, TOP, SHOWN_PROMPTS = 112, 130, 6, 60, 6


def command(*parts: str) -> str:
    """What `umcompress` prints."""
    done = subprocess.run([sys.executable, "-m", "umcompress", *parts], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def made(runs: Path) -> None:
    """Run what is not there; a run that was killed goes on."""
    if not (runs / "scores" / "report.json").is_file():
        command("evaluate", "bagel-mini", "--seed", "7", "-o", str(runs / "scores"))
    for recipe in ("quickstart", "bagel-mini-moe"):
        command("apply", recipe, "-o", str(runs / recipe))


def interval(score: dict[str, Any]) -> str:
    """`0.543 (0.509 to 0.577)`."""
    return f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})"


def steps_of(run: Path) -> dict[str, dict[str, Any]]:
    """The steps of a run's report by name."""
    steps = json.loads((run / "report.json").read_text(encoding="utf-8"))["steps"]
    return {step["name"]: step for step in steps}


def score_table(run: Path) -> str:
    """Scores of the model by kind, with chance."""
    (step,) = steps_of(run).values()
    rows = ["| task | kind | score | chance |", "|---|---|---|---|"]
    for task, score in step["scores"].items():
        rows.append(f"| {task} | **mean** | **{interval(score)}** | {score['chance']:.3f} |")
        rows += [f"| | {kind} | {one['value']:.3f} | {one['chance']:.2f} |" for kind, one in score["by_kind"].items()]
    return "\n".join(rows) + "\n"


def experts_table(run: Path) -> str:
    """Scores and losses of generation, untrained and adapted."""
    steps = steps_of(run)

    def cells(name: str | None) -> str:
        if name is None:
            return " | |"
        step = steps[name]
        loss = step["evaluations"]["task_loss"]["generation"]
        return f" {interval(step['scores']['generation'])} | {loss['value']:.4f} |"

    lines = [f"| {label} |{cells(cut)}{cells(adapted)}" for label, cut, adapted in ROWS]
    return "\n".join([HEAD, "|---|---|---|---|---|", *lines]) + "\n"


def pairs_table(run: Path) -> str:
    """What one step is above another in generation, paired over the same items: score and held-out loss."""
    from umcompress.documents.scores import Score, change

    steps = steps_of(run)
    lines = ["| one step over another | score | loss |", "|---|---|---|"]
    for new, old in PAIRS:
        if not {new, old} <= steps.keys():
            continue
        cells = []
        for evaluation in ("scenes", "task_loss"):
            found = (steps[name]["evaluations"][evaluation]["generation"] for name in (new, old))
            one, other = map(Score.model_validate, found)
            by = change(one, other)
            cells.append(f"{by.value:+.3f} ({by.low:+.3f} to {by.high:+.3f})")
        lines.append(f"| {new} over {old} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def samples(run: Path) -> Image.Image:
    """The same prompts by row: dense, static, refitted, experts, experts adapted."""
    from umcompress.evals.scenes.evaluation import Scenes

    steps = steps_of(run)
    prompts = [prompt.text for prompt in Scenes(prompts=400, questions=100, seed=0).asked_prompts()[:SHOWN_PROMPTS]]
    size = (LABEL + SHOWN_PROMPTS * (TILE + GAP) + GAP, TOP + len(SHOWN) * (TILE + GAP) + GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, prompt in enumerate(prompts):
        draw.multiline_text((LABEL + column * (TILE + GAP), 2), wrapped(prompt, TILE // 6), fill="black", spacing=1)
    for row, (label, name) in enumerate(SHOWN):
        y = TOP + row * (TILE + GAP)
        draw.text((4, y + TILE // 2 - 8), label, fill="black")
        draw.text((4, y + TILE // 2 + 18), f"{steps[name]['scores']['generation']['value']:.3f}", fill="grey")
        # A contact sheet has its pictures four times as large, with six pixels between them.
        source = Image.open(run / steps[name]["samples"])
        for column in range(SHOWN_PROMPTS):
            left = 6 + column * (192 + 6)
            tile = source.crop((left, 6, left + 192, 6 + 192)).resize((TILE, TILE), Image.Resampling.LANCZOS)
            sheet.paste(tile, (LABEL + column * (TILE + GAP), y))
    return sheet


def wrapped(text: str, width: int) -> str:
    """Lines of at most `width` characters."""
    import textwrap

    return "\n".join(textwrap.wrap(text, width))


def replaced(file: Path, pattern: str, text: str) -> None:
    """Put `text` in place of the one part of the file that matches."""
    content = file.read_text(encoding="utf-8")
    found, count = re.subn(pattern, lambda _: text, content, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{file}: {count} places look like {pattern!r}; one is replaced")
    file.write_text(found, encoding="utf-8")


def write(runs: Path) -> None:
    """Tables, the printed report and the picture."""
    replaced(MODEL, r"\| task \| kind \| score \| chance \|\n(?:\|[^\n]*\n)+", score_table(runs / "scores"))
    table = experts_table(runs / "bagel-mini-moe")
    for file in (README, EXPERTS):
        replaced(file, r"\| generation channels at work [^\n]*\n(?:\|[^\n]*\n)+", table)
    printed = f"<!-- report: quickstart -->\n```text\n{command('report', str(runs / 'quickstart'))}\n```\n"
    replaced(README, r"<!-- report: quickstart -->\n```text\n.*?\n```\n", printed)
    samples(runs / "bagel-mini-moe").save(ROOT / "docs" / "samples.png", optimize=True)


def main() -> None:
    """Run what is missing; with --write, put it into the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    made(asked.runs)
    print(score_table(asked.runs / "scores"))
    for run in (asked.runs / "bagel-mini-moe", *sorted(asked.runs.glob("seed-*"))):
        print(pairs_table(run))
    print(experts_table(asked.runs / "bagel-mini-moe"))
    if asked.write:
        write(asked.runs)


if __name__ == "__main__":
    main()
