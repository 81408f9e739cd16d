"""What the campaigns on runs have in common: a small model, recipes in memory, out of core and in training."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import pytest
import torch
import transformers as hf
from check_here import check_here
from hf_models import write_folder
from in_child import Ended, run

SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
CUT = {"pass": "layer_drop", "unit": "block", "drop": [1]}
CHANNELS = {"pass": "channel_prune", "keep_ratio": 0.5}
TEXT = "the quick brown fox jumps over the lazy dog\n" * 30
WAYS = ("in memory", "out of core", "in training")


def prepare(home: Path, patch: pytest.MonkeyPatch) -> Path:
    """A Llama of a few thousand weights, its texts, and a recipe for each way, in a folder."""
    check_here(patch)
    write_folder(hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES)), home / "model")
    (home / "text.txt").write_text(TEXT, encoding="utf-8")
    rows = [json.dumps({"text": line}) for line in TEXT.split("\n") if line]
    (home / "texts.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    calibration = {"data": str(home / "texts.jsonl"), "samples": 2}
    scored = [{"perplexity": {"data": str(home / "text.txt"), "window": 16, "limit": 4}}]
    learn = {
        "pass": "adapt", "parameters": ["*.mlp.*"], "data": str(home / "texts.jsonl"), "steps": 4, "batch_size": 2,
        "checkpoint_every": 1, "warm_up": 1,
    }  # fmt: skip
    for way, steps, evaluate in zip(
        WAYS, ([CUT, CHANNELS], [CUT, CHANNELS], [CUT, learn]), (scored, [], []), strict=True
    ):
        content = {
            "model": str(home / "model"), "calibration": calibration, "evaluate": evaluate, "steps": steps,
            "measure": {"speed": "off"},
        }  # fmt: skip
        recipe_of(home, way).write_text(json.dumps(content), encoding="utf-8")
    _import_all(home)
    return home


def recipe_of(home: Path, way: str) -> Path:
    return home / f"{way.replace(' ', '_')}.yaml"


def command(home: Path, way: str, out: Path) -> list[str]:
    return ["apply", str(recipe_of(home, way)), "-o", str(out), *(["--out-of-core"] if way == "out of core" else [])]


def _import_all(home: Path) -> None:
    """Forks have what was imported; this process never computes gradients, whose threads no fork would have."""
    from umcompress.cli.main import main

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for arguments in (
            ["inspect", str(home / "model"), "--format", "json"],
            *(command(home, way, home / f"imported {way}") for way in WAYS[:2]),
            ["plan", str(recipe_of(home, "in training"))],
        ):
            assert main(arguments) == 0, arguments


def result(out: Path) -> dict[str, bytes]:
    """What a run must come to whatever happened on the way: the model folder and the plans."""
    files = [*sorted((out / "model").rglob("*")), out / "plan.json"]
    return {str(file.relative_to(out)): file.read_bytes() for file in files if file.is_file()}


def references(home: Path, ways: Sequence[str] = WAYS) -> dict[str, dict[str, bytes]]:
    """What each way comes to when nothing happens; made once in a folder."""
    found = {}
    for way in ways:
        out = home / f"reference {way}"
        ended = None if out.exists() else run(command(home, way, out))
        assert ended is None or ended.code == 0, ended.said
        found[way] = result(out)
    return found


def finished(arguments: list[str], out: Path, expected: dict[str, bytes], what: str) -> list[str]:
    """Give the command again without hindrance: what is wrong with how that ends."""
    ended = run(arguments)
    if ended.code != 0:
        return [f"{what}: the same command ended with {ended.code}: {last(ended)}"]
    found = result(out)
    names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    return [f"{what}: other results in {', '.join(names)}"] if names else []


def last(ended: Ended) -> str:
    return "\n".join(ended.said.strip().split("\n")[-6:])


def campaign(text: str | None, work: Callable[[Path, int, int], tuple[str, list[str]]], count: int) -> None:
    """Run a campaign from the command line: `work` gets a folder, how many and a seed; it tells figures and faults."""
    import tempfile

    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--count", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        figures, faults = work(prepare(Path(folder), patch), given.count, given.seed)
    for fault in faults:
        print(fault)
    print(f"{figures}; {len(faults)} faults")
    sys.exit(bool(faults))
