"""What a sweep saves against separate runs, and that its numbers are theirs to the last digit.

`python benchmarks/sweep_time.py` runs the 12 cells of sweeps/depth as one sweep, then each as an `apply` of its own,
and compares every score, size and weight file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from _results import record

from umcompress.documents.report import StepReport, read_report
from umcompress.documents.sweep import Sweep

UNTIMED = {"seconds", "speed", "flags"}


def timed(*arguments: str) -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "umcompress", *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


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
    given = parser.parse_args()
    whole = timed("sweep", given.recipe, "-o", str(given.folder / "sweep"))
    sweep = Sweep.model_validate_json((given.folder / "sweep" / "sweep.json").read_text(encoding="utf-8"))
    single, equal = 0.0, 0
    for cell in sweep.cells:
        out = given.folder / "alone" / cell.name
        settings = [part for path, value in cell.values.items() for part in ("--set", f"{path}={json.dumps(value)}")]
        single += timed("apply", given.recipe, *settings, "-o", str(out))
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
        record("sweep_time", {"recipe": given.recipe}, {"12 cells": row})


if __name__ == "__main__":
    main()
