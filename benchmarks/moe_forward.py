"""Time of a feed-forward split into experts over the time of the dense one, half of the experts active.

    python benchmarks/moe_forward.py [--tokens 1 64 1024 4096] [--experts 16 32] [--rounds 9] [--record]

For each number of tokens, each as a share of the dense time: the module of `umcompress.nn`; the ideal (active
share of the products plus the router); a loop over boolean masks, as the study's code has it; and the module
with one expert of full width, always on, which shows what its products gain over those of `nn.Linear`
whatever is active. In each round all run in turn on new tokens, so that a busy machine slows them alike; the
ratios are medians over rounds. `--record` appends the figures to results.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from _results import record
from torch import Tensor, nn
from torch.nn import functional as F

from umcompress.rewrite.nn.experts import ExpertShape, SparseFeedForward

WARMUP = 3
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    device: str
    dtype: torch.dtype
    hidden: int
    width: int
    experts: int
    tokens: int

    @property
    def ideal(self) -> float:
        return 0.5 + self.experts / (3 * self.width)


class GatedSilu(nn.Module):
    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up


class Dense(nn.Module):
    """x (T, H) -> (T, H) through I channels."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class MaskLoop(nn.Module):
    """The same experts as the study's code runs them: one after the other, each on the tokens in its mask."""

    def __init__(self, hidden: int, width: int, experts: int, active: int) -> None:
        super().__init__()
        self.active = active
        self.gate = nn.Linear(hidden, experts, bias=False)
        self.experts = nn.ModuleList(Dense(hidden, width // experts) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        picked, chosen = torch.topk(self.gate(x), self.active, dim=-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mask = chosen == number
            rows = mask.any(dim=-1)
            if rows.any():
                out[rows] += (1 + picked[mask])[:, None] * expert(x[rows])
        return out


def modules(case: Case) -> tuple[nn.Module, ...]:
    """Dense; the module; the mask loop; the module with one expert of full width."""
    active = case.experts // 2
    shape = ExpertShape(
        hidden=case.hidden, experts=case.experts, active=active, width=case.width // case.experts,
        producers=("gate_proj", "up_proj"), consumer="down_proj", producer_bias=(False, False), consumer_bias=False,
    )  # fmt: skip
    with torch.device(case.device):
        ours, loop = SparseFeedForward(shape, GatedSilu()), MaskLoop(case.hidden, case.width, case.experts, active)
        one = SparseFeedForward(replace(shape, experts=1, active=1, width=case.width), GatedSilu())
        made = (Dense(case.hidden, case.width), ours, loop, one)
    nn.init.normal_(ours.gate.weight, std=case.hidden**-0.5)
    loop.load_state_dict({"gate.weight": ours.gate.weight.detach()}, strict=False)
    return tuple(module.to(case.dtype) for module in made)


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
    timed = []
    for _ in range(WARMUP + rounds):
        # New tokens each round, as in use: the sizes of the experts' groups change.
        x = torch.randn(case.tokens, case.hidden, device=case.device, dtype=case.dtype, requires_grad=backward)
        timed.append([seconds(module, x, backward, clock) for module in made])
    timed = timed[WARMUP:]
    ours, loop, one = (statistics.median(row[i] / row[0] for row in timed) for i in (1, 2, 3))
    return {
        "expert / dense": ours,
        "ideal": case.ideal,
        "mask loop / dense": loop,
        "one expert / dense": one,
        "dense ms": statistics.median(row[0] for row in timed) * 1e3,
    }


def cases(options: argparse.Namespace) -> list[Case]:
    cpu = [
        Case("cpu", torch.float32, 1024, 4096, experts, tokens)
        for experts in options.experts
        for tokens in options.tokens
    ]
    if not torch.cuda.is_available():
        print("no CUDA device: skipped")
        return cpu
    return cpu + [Case("cuda", torch.bfloat16, 3584, 18944, experts, 4096) for experts in options.experts]


def name(case: Case, backward: bool) -> str:
    dtype = str(case.dtype).removeprefix("torch.")
    what = "forward and backward" if backward else "forward"
    return f"{case.device} {dtype} {case.hidden}x{case.width}, E={case.experts}, T={case.tokens}, {what}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 64, 1024, 4096])
    parser.add_argument("--experts", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--clock", choices=list(CLOCKS), default="wall", help="processor: for a busy machine, with OMP_NUM_THREADS=1"
    )
    parser.add_argument("--record", action="store_true", help="append the figures to results.md")
    options = parser.parse_args()
    torch.manual_seed(0)
    rows: dict[str, dict[str, float]] = {}
    for case in cases(options):
        for backward in (False, True):
            row = measure(case, backward, options.rounds, CLOCKS[options.clock])
            rows[name(case, backward)] = row
            print(f"{name(case, backward):62s}", *(f"{key} {value:.3f}" for key, value in row.items()), flush=True)
    if options.record:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
        record("moe_forward", {**vars(options), "device": device}, rows)


if __name__ == "__main__":
    main()
