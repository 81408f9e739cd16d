"""Processor time of whole commands: start-up over that of bare Python, `plan` of large skeletons, quickstart.

    python benchmarks/commands.py [--rounds 5] [--quickstart] [--record]

Of start-up each round runs all commands in turn, and the ratios are medians over rounds. `plan` is that of a Llama of
80 blocks and of BAGEL-7B, from their configurations alone, and of quickstart; importing what each imports (torch and,
but for BAGEL, transformers) is a line of its own. `--quickstart` runs that recipe once, minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from _results import as_installed, record

STARTS = {
    "python": ("-c", "pass"), "--help": ("-m", "umcompress", "--help"), "passes": ("-m", "umcompress", "passes"),
    "evaluations": ("-m", "umcompress", "evaluations"), "schema": ("-m", "umcompress", "schema"),
}  # fmt: skip
IMPORTED = """
import json, sys
from umcompress.cli.main import main
assert main(sys.argv[1:]) == 0
print(json.dumps(list(sys.modules)))
"""
IMPORT = """
import contextlib, importlib, json, sys
from pathlib import Path
for name in json.loads(Path(sys.argv[1]).read_text()):
    with contextlib.suppress(ImportError):  # some are made by others as they are imported
        importlib.import_module(name)
"""
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672,
    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip
BAGEL_TEXT = {
    "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
    "intermediate_size": 18944, "vocab_size": 152064,
}  # fmt: skip
BAGEL_VISION = {
    "hidden_size": 1152, "image_size": 980, "intermediate_size": 4304, "num_attention_heads": 16,
    "num_hidden_layers": 27, "patch_size": 14,
}  # fmt: skip


def seconds(arguments: Sequence[str]) -> float:
    """Processor time of Python with these arguments, its own children included, with bytecode as installed."""
    command, quiet = [sys.executable, "-P", *arguments], subprocess.DEVNULL
    before = os.times()
    subprocess.run(command, env=as_installed(), stdout=quiet, stderr=quiet, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def starts(rounds: int, report: Path | None) -> dict[str, dict[str, float]]:
    commands = dict(STARTS)
    if report is not None:
        commands["compare"] = ("-m", "umcompress", "compare", str(report), str(report))
    for command in commands.values():
        seconds(command)  # The first start of an installation compiles its modules; users meet that once.
    timed = [{name: seconds(command) for name, command in commands.items()} for _ in range(rounds)]
    return {
        f"start: {name}": {
            "seconds": statistics.median(row[name] for row in timed),
            "over python": statistics.median(row[name] / row["python"] for row in timed),
        }
        for name in commands
    }


def imported(plan: Sequence[str]) -> list[str]:
    """What a plan has imported when it is done, in that order."""
    lines = subprocess.run(
        [sys.executable, "-P", "-c", IMPORTED, *plan], env=as_installed(), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    found: list[str] = json.loads(lines[-1])
    return found


def planned(folder: Path) -> dict[str, str]:
    """What is planned, by name: two recipes over configurations without weights, and quickstart."""
    drop = {"pass": "layer_drop", "drop": [3, 4]}
    found = {"quickstart": "quickstart"}
    for name, files, step in (
        ("80 Llama blocks", {"config.json": LLAMA}, drop),
        (
            "BAGEL-7B's skeleton", {"llm_config.json": BAGEL_TEXT, "vit_config.json": BAGEL_VISION},
            drop | {"component": "shared"},
        ),
    ):
        model = folder / name
        model.mkdir()
        for file, content in files.items():
            (model / file).write_text(json.dumps(content))
        recipe = folder / f"{name}.yaml"
        recipe.write_text(json.dumps({"model": str(model), "steps": [step]}))
        found[name] = str(recipe)
    return found


def plans(rounds: int, folder: Path) -> dict[str, dict[str, float]]:
    """Each plan beside a process that imports what it imports and does nothing else, in turn."""
    found = {}
    for name, what in planned(folder).items():
        modules = folder / "modules.json"
        modules.write_text(json.dumps(imported(("plan", what))))
        imports = ("-c", IMPORT, str(modules))
        timed = [(seconds(("-m", "umcompress", "plan", what)), seconds(imports)) for _ in range(rounds)]
        alone = statistics.median(base for _, base in timed)
        beside = statistics.median(whole - base for whole, base in timed)
        found[f"imports of the plan of {name}"] = {"seconds": alone, "over python": 0.0}
        found[f"plan of {name}, beside its imports"] = {"seconds": beside, "over python": 0.0}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quickstart", action="store_true", help="run it, too")
    parser.add_argument("--report", type=Path, help="the folder of a run, for `compare`")
    parser.add_argument("--record", action="store_true", help="append the figures to results.md")
    options = parser.parse_args()
    rows = starts(options.rounds, options.report)
    with tempfile.TemporaryDirectory() as place:
        rows |= plans(options.rounds, Path(place))
        if options.quickstart:
            took = seconds(("-m", "umcompress", "apply", "quickstart", "-o", str(Path(place) / "run")))
            rows["quickstart"] = {"seconds": took, "over python": 0.0}
    for name, row in rows.items():
        print(f"{name:40s}", *(f"{key} {value:.2f}" for key, value in row.items() if value), flush=True)
    if options.record:
        record("commands", {"rounds": options.rounds}, rows)


if __name__ == "__main__":
    main()
