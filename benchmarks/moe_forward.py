"""Time of a feed-forward split into experts over that of dense ones that multiply by the same kernel.

    python benchmarks/moe_forward.py [--tokens 1 16 64 256 1024] [--splits 16/8 64/22+960] [--rounds 9] [--record]

A split `64/22+960` is 64 experts of which 22 run, beside a shared one of 960 channels. Columns: the module over the
dense feed-forward, and over a static one of as many channels as are at work, both with the module's own product; the
ideal (share of the products, and the router); a loop over boolean masks, as the study's code has it, over that dense
one; and by itself, what the product gains where nothing is split: the dense one over one of `nn.Linear`. In each round
all run in turn on new tokens, so that a busy machine slows them alike; the ratios are medians over rounds. `--record`
appends the figures to results.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from _results import record
from torch import Tensor, nn
from torch.nn import functional as F

from umcompress.rewrite.nn import cpu
from umcompress.rewrite.nn.experts import ExpertShape, SparseFeedForward

WARMUP = 3
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


@dataclass(frozen=True)
class Split:
    """So many experts, of which so many run, beside a shared one of so many channels."""

    experts: int
    active: int
    shared: int = 0

    @classmethod
    def parse(cls, text: str) -> Split:
        """`16/8` or `64/22+960`."""
        routed, _, shared = text.partition("+")
        experts, _, active = routed.partition("/")
        return cls(int(experts), int(active), int(shared or 0))

    def __str__(self) -> str:
        return f"{self.experts}/{self.active}" + (f"+{self.shared}" if self.shared else "")


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    device: str
    dtype: torch.dtype
    hidden: int
    width: int
    split: Split
    tokens: int

    @property
    def at_work(self) -> int:
        """Channels that a token goes through."""
        split = self.split
        return split.shared + split.active * ((self.width - split.shared) // split.experts)

    @property
    def ideal(self) -> float:
        return self.at_work / self.width + self.split.experts / (3 * self.width)


class _Product(torch.autograd.Function):
    """x (T, K) times weight (N, K)', by the product that experts multiply with."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return cpu._product(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return cpu._product(grad, weight.t()), cpu._product(grad.t(), x.t())


class SameProduct(nn.Linear):
    """A linear that multiplies as experts do; on a GPU those use the same library as any linear."""

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            return super().forward(x)
        product: Any = _Product.apply if torch.is_grad_enabled() else cpu._product
        out: Tensor = product(x, self.weight)
        return out


class GatedSilu(nn.Module):
    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up


class Dense(nn.Module):
    """x (T, H) -> (T, H) through I channels."""

    def __init__(self, hidden: int, width: int, linear: type[nn.Linear] = SameProduct) -> None:
        super().__init__()
        self.gate_proj = linear(hidden, width, bias=False)
        self.up_proj = linear(hidden, width, bias=False)
        self.down_proj = linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class MaskLoop(nn.Module):
    """The same experts as the study's code runs them: one after the other, each on the tokens in its mask."""

    def __init__(self, hidden: int, width: int, experts: int, active: int) -> None:
        super().__init__()
        self.active = active
        self.gate = nn.Linear(hidden, experts, bias=False)
        self.experts = nn.ModuleList(Dense(hidden, width // experts, nn.Linear) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        picked, chosen = torch.topk(self.gate(x), self.active, dim=-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mask = chosen == number
            rows = mask.any(dim=-1)
            if rows.any():
                out[rows] += (1 + picked[mask])[:, None] * expert(x[rows])
        return out


def modules(case: Case) -> dict[str, nn.Module]:
    """All that is timed, by name."""
    split, width = case.split, (case.width - case.split.shared) // case.split.experts
    shape = ExpertShape(
        hidden=case.hidden, experts=split.experts, active=split.active, width=width,
        producers=("gate_proj", "up_proj"), consumer="down_proj", producer_bias=(False, False), consumer_bias=False,
        shared_width=split.shared,
    )  # fmt: skip
    with torch.device(case.device):
        ours = SparseFeedForward(shape, GatedSilu())
        loop = MaskLoop(case.hidden, case.width - split.shared, split.experts, split.active)
        made = {
            "dense": Dense(case.hidden, case.width), "experts": ours, "static": Dense(case.hidden, case.at_work),
            "mask loop": loop, "nn.Linear": Dense(case.hidden, case.width, nn.Linear),
        }  # fmt: skip
    nn.init.normal_(ours.gate.weight, std=case.hidden**-0.5)
    loop.load_state_dict({"gate.weight": ours.gate.weight.detach()}, strict=False)
    return {name: module.to(case.dtype) for name, module in made.items()}


def seconds(module: nn.Module, x: Tensor, backward: bool, clock: Callable[[], float]) -> float:
    """One forward, or one forward and backward to x and every parameter."""
    module.zero_grad(set_to_none=True)
    if x.is_cuda:
        torch.cuda.synchronize()
    start = clock()
    if backward:
        module(x).backward(torch.ones_like(x))
    else:
        with torch.inference_mode():
            module(x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return clock() - start


def measure(case: Case, backward: bool, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median ratios to the dense module, and its milliseconds."""
    made = modules(case)
    rounds = rounds * 10 if case.tokens <= 64 or case.device == "cuda" else rounds
    timed: list[dict[str, float]] = []
    for _ in range(WARMUP + rounds):
        # New tokens each round, as in use: the sizes of the experts' groups change.
        x = torch.randn(case.tokens, case.hidden, device=case.device, dtype=case.dtype, requires_grad=backward)
        timed.append({name: seconds(module, x, backward, clock) for name, module in made.items()})
    timed = timed[WARMUP:]

    def ratio(one: str, other: str) -> float:
        return statistics.median(row[one] / row[other] for row in timed)

    return {
        "experts / dense": ratio("experts", "dense"),
        "experts / static": ratio("experts", "static"),
        "ideal": case.ideal,
        "mask loop / dense": ratio("mask loop", "dense"),
        "dense / nn.Linear": ratio("dense", "nn.Linear"),
        "dense ms": statistics.median(row["dense"] for row in timed) * 1e3,
    }


def cases(options: argparse.Namespace) -> list[Case]:
    """On a GPU the width of BAGEL in bfloat16; on a CPU also one token and a batch of it."""
    split_tokens = [(Split.parse(text), tokens) for text in options.splits for tokens in options.tokens]
    cpu_cases = [Case("cpu", torch.float32, 1024, 4096, split, tokens) for split, tokens in split_tokens]
    if options.bagel_width:
        cpu_cases += [Case("cpu", torch.bfloat16, 3584, 18944, Split(16, 8), tokens) for tokens in (1, 256)]
    if not torch.cuda.is_available():
        print("no CUDA device: skipped")
        return cpu_cases
    splits = (Split(16, 8), Split(64, 32))
    return cpu_cases + [Case("cuda", torch.bfloat16, 3584, 18944, split, 4096) for split in splits]


def name(case: Case, backward: bool) -> str:
    dtype = str(case.dtype).removeprefix("torch.")
    what = "forward and backward" if backward else "forward"
    return f"{case.device} {dtype} {case.hidden}x{case.width}, {case.split}, T={case.tokens}, {what}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 64, 256, 1024])
    parser.add_argument("--splits", nargs="+", default=["16/8", "64/22+960"])
    parser.add_argument("--bagel-width", action="store_true", help="bfloat16 at the width of BAGEL too (gigabytes)")
    parser.add_argument("--backward", action="store_true", help="forward and backward too")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--clock", choices=list(CLOCKS), default="wall", help="processor: for a busy machine, with OMP_NUM_THREADS=1"
    )
    parser.add_argument("--record", action="store_true", help="append the figures to results.md")
    options = parser.parse_args()
    torch.manual_seed(0)
    rows: dict[str, dict[str, float]] = {}
    for case in cases(options):
        for backward in (False, True) if options.backward else (False,):
            row = measure(case, backward, options.rounds, CLOCKS[options.clock])
            rows[name(case, backward)] = row
            print(f"{name(case, backward):62s}", *(f"{key} {value:.3f}" for key, value in row.items()), flush=True)
    if options.record:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
        record("moe_forward", {**vars(options), "device": device}, rows)


if __name__ == "__main__":
    main()
