"""What only a GPU shows, in under five minutes: experts, a BAGEL block, a calibration sweep, denoising.

    python benchmarks/gpu.py [--small] [--rounds 9] [--record]      # or: make gpu-bench

Each row is the median of rounds in which both sides run in turn: milliseconds of the first, and the ratio to the
second. Experts over a dense feed-forward (bfloat16, 3584 x 18944); one block of BAGEL at full width with half of its
generation channels over the whole one, on 4096 latents; a block with the sums of least squares over a plain one; a
guided denoising step of four blocks with experts over the dense one. Without a CUDA device nothing is measured, and
that is said. `--small` runs all at a tiny size on whatever there is: it shows that the script works, and no speed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from _results import record
from moe_forward import Case, Split, measure
from torch import nn

from umcompress.calibrate.observers import MomentSum
from umcompress.models.bagel.config import TextConfig
from umcompress.models.bagel.context import Cache, Context
from umcompress.models.bagel.decoder import BagelBlock
from umcompress.models.bagel.experts import GatedSilu
from umcompress.models.bagel.layers import GatedMLP
from umcompress.rewrite.nn.experts import ExpertShape, SparseFeedForward

Row = dict[str, float]


class Sizes:
    """The released BAGEL's, or tiny ones."""

    def __init__(self, small: bool) -> None:
        self.hidden, self.width, self.heads, self.groups = (64, 128, 4, 2) if small else (3584, 18944, 28, 4)
        self.latents = 64 if small else 4096
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = torch.bfloat16

    def text(self, width: int | None = None) -> TextConfig:
        return TextConfig(
            hidden_size=self.hidden, intermediate_size=width or self.width, num_hidden_layers=4, vocab_size=64,
            num_attention_heads=self.heads, num_key_value_heads=self.groups,
        )  # fmt: skip

    def blocks(self, count: int, make: Callable[[BagelBlock], None] | None = None) -> nn.ModuleList:
        """Blocks of BAGEL with random weights; `make` changes each before it gets its dtype."""
        with torch.device(self.device):
            blocks = [BagelBlock(self.text(), index) for index in range(count)]
            for block in blocks:
                if make is not None:
                    make(block)
        return nn.ModuleList(blocks).to(self.dtype)

    def forward(self, blocks: nn.ModuleList) -> None:
        """One picture with its two markers through the blocks, as a denoising step sends it."""
        und = torch.randn(2, self.hidden, device=self.device, dtype=self.dtype)
        gen = torch.randn(self.latents, self.hidden, device=self.device, dtype=self.dtype)
        kinds = torch.ones(self.latents + 2, dtype=torch.long)
        kinds[0] = kinds[-1] = 0
        context = Context([kinds], [torch.zeros(len(kinds))], None, Cache(1), device=self.device)
        context.prepare_rope(10_000.0, self.hidden // self.heads)
        for block in blocks:
            und, gen = block(und, gen, context)


def in_turn(one: Callable[[], None], other: Callable[[], None], rounds: int) -> Row:
    """Milliseconds of the first, and its ratio to the second."""
    for work in (one, other) * 2:
        _seconds(work)
    timed = [(_seconds(one), _seconds(other)) for _ in range(rounds)]
    ratio = statistics.median(first / second for first, second in timed)
    return {"ms": statistics.median(first for first, _ in timed) * 1e3, "ratio": ratio}


@torch.no_grad()
def _seconds(work: Callable[[], None]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def experts(sizes: Sizes, rounds: int) -> dict[str, Row]:
    rows = {}
    for split in (Split(16, 8), Split(64, 32)):
        for tokens in (1, 256, sizes.latents):
            case = Case(sizes.device, sizes.dtype, sizes.hidden, sizes.width, split, tokens)
            found = measure(case, False, rounds, time.perf_counter)
            row = {"ms": found["dense ms"] * found["experts / dense"], "ratio": found["experts / dense"]}
            rows[f"experts {split}, {tokens} tokens, over dense"] = row
    return rows


def block(sizes: Sizes, rounds: int) -> dict[str, Row]:
    def halve(one: BagelBlock) -> None:
        one.mlp_moe_gen = GatedMLP(sizes.hidden, sizes.width // 2)

    half, whole = sizes.blocks(1, halve), sizes.blocks(1)
    row = in_turn(lambda: sizes.forward(half), lambda: sizes.forward(whole), rounds)
    return {"block, half of the generation channels, over whole": row}


def calibration(sizes: Sizes, rounds: int) -> dict[str, Row]:
    watched, plain = sizes.blocks(1), sizes.blocks(1)
    total = MomentSum(sizes.width, torch.device(sizes.device))
    consumer = watched.get_submodule("0.mlp_moe_gen.down_proj")
    consumer.register_forward_pre_hook(lambda _, inputs: total.add(inputs[0]))
    row = in_turn(lambda: sizes.forward(watched), lambda: sizes.forward(plain), rounds)
    return {"block with sums for least squares, over plain": row}


def denoising(sizes: Sizes, rounds: int) -> dict[str, Row]:
    def split(one: BagelBlock) -> None:
        shape = ExpertShape(
            sizes.hidden, 16, 8, sizes.width // 16, ("gate_proj", "up_proj"), "down_proj", (False, False), False
        )
        one.mlp_moe_gen = SparseFeedForward(shape, GatedSilu())
        nn.init.normal_(one.mlp_moe_gen.gate.weight, std=sizes.hidden**-0.5)

    sparse, dense = sizes.blocks(4, split), sizes.blocks(4)

    def step(blocks: nn.ModuleList) -> None:
        for _ in ("with the prompt", "without"):
            sizes.forward(blocks)

    row = in_turn(lambda: step(sparse), lambda: step(dense), rounds)
    return {"guided step of 4 blocks with experts 16/8, over dense": row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny sizes, on any machine: no speed, only that it works")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--record", action="store_true", help="append the figures to results.md")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.small:
        print("no CUDA device: nothing was measured")
        return
    torch.manual_seed(0)
    sizes, rows = Sizes(options.small), dict[str, Row]()
    for part in (experts, block, calibration, denoising):
        for name, row in part(sizes, options.rounds).items():
            rows[name] = row
            print(f"{name:60s}", *(f"{key} {value:.3f}" for key, value in row.items()), flush=True)
    if options.record and not options.small:
        record("gpu", {**vars(options), "device": torch.cuda.get_device_name()}, rows)


if __name__ == "__main__":
    main()
