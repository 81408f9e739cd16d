"""What calibration costs: a sweep with each kind of statistics over plain forwards of the same texts.

    python benchmarks/calibration.py [--hidden 1024] [--width 4096] [--layers 4] [--tokens 2048] [--rounds 5]

A Llama with random weights. Each round runs all in turn: plain forwards, the same with the statistics of a pass, and
for least squares also the solution. Ratios of processor time, medians over rounds; `--record` appends to results.md.

`--llmcompressor PYTHON`: the same model and texts through Wanda and SparseGPT of llm-compressor, over its own plain
forward, by the Python of an environment that has it (`python -m venv runs/llmc && runs/llmc/bin/pip install
llmcompressor`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _results import record
from transformers import LlamaConfig, LlamaForCausalLM

from umcompress.calibrate.collect import collect
from umcompress.calibrate.declare import (
    BlockSimilarity,
    ChannelActivation,
    ChannelMoments,
    Declaration,
    HeadContribution,
)
from umcompress.calibrate.statistics import Statistics
from umcompress.graph.model_graph import ModelGraph, trace_model
from umcompress.models.source import open_source
from umcompress.passes import _repair

STATISTICS: dict[str, Declaration] = {
    "layer drop": BlockSimilarity(), "channels": ChannelActivation(), "heads": HeadContribution(),
    "least squares": ChannelMoments(),
}  # fmt: skip


def solve(graph: ModelGraph, found: Statistics) -> None:
    """Refit each consumer to half of its channels."""
    for site in graph.feed_forwards():
        moments = found[ChannelMoments()][site]
        kept = tuple(range(0, site.width, 2))
        weight = graph.weight(f"{site.consumer}.weight")
        _repair.least_squares(weight, None, moments.second, moments.mean, kept, 1e-2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("hidden", 1024), ("width", 4096), ("layers", 4), ("tokens", 2048), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--llmcompressor", type=Path, help="the Python of an environment that has it")
    parser.add_argument("--record", action="store_true", help="append the figures to results.md")
    options = parser.parse_args()
    torch.manual_seed(0)
    heads = max(1, options.hidden // 64)
    config = LlamaConfig(
        hidden_size=options.hidden, intermediate_size=options.width, num_hidden_layers=options.layers,
        num_attention_heads=heads, num_key_value_heads=heads, vocab_size=256,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        source = open_source(folder)
        model = source.load()
        graph = trace_model(model, source.family)
        texts = torch.randint(0, 256, (max(1, options.tokens // 128), 128))
        rows = measured(graph, lambda: _forward(model, texts), options.rounds)
        if options.llmcompressor is not None:
            rows |= theirs(options.llmcompressor, Path(folder), texts, options.rounds)
    for name, row in rows.items():
        print(f"{name:20s}", *(f"{key} {value:.2f}" for key, value in row.items()), flush=True)
    if options.record:
        record("calibration", vars(options), rows)


def theirs(python: Path, folder: Path, texts: torch.Tensor, rounds: int) -> dict[str, dict[str, float]]:
    torch.save(texts, folder / "texts.pt")
    script = Path(__file__).with_name("_llmcompressor_pruning.py")
    command = [str(python), str(script), str(folder), str(folder / "texts.pt"), str(rounds)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {f"llm-compressor, {name}": {"over plain": ratio} for name, ratio in found.items()}


@torch.no_grad()
def _forward(model: Any, texts: torch.Tensor) -> None:
    for batch in torch.split(texts, 8):
        model.model(batch, use_cache=False)


def _keep(found: list[Statistics], graph: ModelGraph, wanted: Declaration, feed: Callable[[], None]) -> None:
    found.append(_swept(graph, [wanted], feed))


def measured(graph: ModelGraph, feed: Callable[[], None], rounds: int) -> dict[str, dict[str, float]]:
    timed: list[dict[str, float]] = []
    for _ in range(rounds):
        row = {"plain": _processor(feed)}
        for name, wanted in STATISTICS.items():
            found: list[Statistics] = []
            row[name] = _processor(partial(_keep, found, graph, wanted, feed))
            if name == "least squares":
                row["its solution"] = _processor(partial(solve, graph, found[0]))
        timed.append(row)
    return {
        name: {"over plain": statistics.median(row[name] / row["plain"] for row in timed)}
        for name in timed[0] if name != "plain"
    }


def _swept(graph: ModelGraph, wanted: Sequence[Declaration], feed: Callable[[], None]) -> Statistics:
    found = collect(graph, wanted, feed)
    for declaration in wanted:
        if isinstance(declaration, ChannelMoments):
            _ = [found[declaration][site] for site in graph.feed_forwards()]
    return found


def _processor(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main()
