"""What a sweep saves against separate runs, and that its numbers are theirs to the last digit.

`python benchmarks/sweep_time.py` runs the 12 cells of sweeps/depth as one sweep, then each as an `apply` of its own,
and compares every score, size and weight file. Times are processor time, of the commands and all that they start, so
that other work on the machine does not count. --small takes few items and times nothing: what is left is mostly what
each cell must do for itself, so the ratio is nearer to 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from _results import record

from umcompress.documents.report import StepReport, read_report
from umcompress.documents.sweep import Sweep

SMALL = (
    "evaluate.0.task_loss.items=16", "evaluate.1.scenes={prompts: 4, questions: 8}", "calibration.samples=8",
    "measure.speed=off",
)  # fmt: skip
UNTIMED = {"seconds", "speed", "flags"}


def timed(*arguments: str) -> float:
    """Processor seconds of a command."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "umcompress", *arguments], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def numbers(step: StepReport) -> object:
    """All that does not come from a clock."""
    def without(value: object) -> object:
        if isinstance(value, dict):
            return {key: without(part) for key, part in value.items() if key not in UNTIMED}
        return [without(part) for part in value] if isinstance(value, list) else value

    return without(step.json_values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="sweeps/depth", help="a recipe with a grid of 12 cells")
    parser.add_argument("--folder", type=Path, default=Path("runs/sweep_time"), help="an empty folder")
    parser.add_argument("--record", action="store_true", help="append to results.md")
    parser.add_argument("--small", action="store_true", help="few items: about 5 minutes of one core")
    given = parser.parse_args()
    asked = [part for setting in (SMALL if given.small else ()) for part in ("--set", setting)]
    whole = timed("sweep", given.recipe, *asked, "-o", str(given.folder / "sweep"))
    sweep = Sweep.model_validate_json((given.folder / "sweep" / "sweep.json").read_text(encoding="utf-8"))
    single, equal = 0.0, 0
    for cell in sweep.cells:
        out = given.folder / "alone" / cell.name
        settings = [part for path, value in cell.values.items() for part in ("--set", f"{path}={json.dumps(value)}")]
        single += timed("apply", given.recipe, *asked, *settings, "-o", str(out))
        own, theirs = given.folder / "sweep" / "cells" / cell.name, read_report(out)
        same = [numbers(step) for step in read_report(own).steps] == [numbers(step) for step in theirs.steps]
        files = sorted((out / "model").glob("*.safetensors"))
        same = same and all(file.read_bytes() == (own / "model" / file.name).read_bytes() for file in files)
        equal += same
        print(f"{cell.name}: {'equal' if same else 'NOT EQUAL'}", flush=True)
    row = {"cells": len(sweep.cells), "equal": equal, "sweep seconds": whole, "separate seconds": single,
           "ratio": whole / single}  # fmt: skip
    print(row)
    if given.record:
        chosen = " ".join(SMALL) if given.small else "the recipe's"
        arguments = {"recipe": given.recipe, "clock": "processor", "settings": chosen}
        record("sweep_time", arguments, {f"{len(sweep.cells)} cells": row})


if __name__ == "__main__":
    main()
