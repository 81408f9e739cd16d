"""Time of a feed-forward split into experts over the time of the dense one, half of the experts active.

    python benchmarks/moe_forward.py [--tokens 1 64 1024 4096] [--experts 16 32] [--rounds 9] [--record]

For each number of tokens: the sorted module of `umcompress.nn`, the ideal (active share of the products plus
the router) and the loop over boolean masks that it replaces. In each round dense, sorted and loop run in
turn, so that a busy machine slows all three; the ratios are medians over rounds. `--record` appends the
figures to results.md.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umcompress.nn.experts import ExpertShape, SparseFeedForward

RESULTS = Path(__file__).parent / "results.md"
COLUMNS = ("device", "experts", "T", "what", "expert / dense", "ideal", "mask loop / dense", "dense ms")
HEAD = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"
WARMUP = 3


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


def modules(case: Case) -> tuple[Dense, SparseFeedForward, MaskLoop]:
    active = case.experts // 2
    shape = ExpertShape(
        hidden=case.hidden, experts=case.experts, active=active, width=case.width // case.experts,
        producers=("gate_proj", "up_proj"), consumer="down_proj", producer_bias=(False, False), consumer_bias=False,
    )  # fmt: skip
    with torch.device(case.device):
        made = (
            Dense(case.hidden, case.width),
            SparseFeedForward(shape, GatedSilu()),
            MaskLoop(case.hidden, case.width, case.experts, active),
        )
    nn.init.normal_(made[1].gate.weight, std=case.hidden**-0.5)
    with torch.no_grad():
        made[2].gate.weight.copy_(made[1].gate.weight)
    for module in made:
        module.to(case.dtype)
    return made


def seconds(module: nn.Module, x: Tensor, backward: bool, cuda: bool) -> float:
    """One forward, or one forward and backward to x and every parameter."""
    module.zero_grad(set_to_none=True)
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    if backward:
        module(x).backward(torch.ones_like(x))
    else:
        with torch.inference_mode():
            module(x)
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(case: Case, backward: bool, rounds: int) -> tuple[float, float, float]:
    """Median ratio of the sorted module and of the mask loop to the dense one, and the dense milliseconds."""
    made = modules(case)
    cuda = case.device == "cuda"
    rounds = rounds * 10 if case.tokens <= 64 or cuda else rounds
    timed = []
    for _ in range(WARMUP + rounds):
        # New tokens each round, as in use: the sizes of the experts' groups change.
        x = torch.randn(case.tokens, case.hidden, device=case.device, dtype=case.dtype, requires_grad=backward)
        timed.append([seconds(module, x, backward, cuda) for module in made])
    timed = timed[WARMUP:]
    ratio = [statistics.median(row[i] / row[0] for row in timed) for i in (1, 2)]
    return ratio[0], ratio[1], statistics.median(row[0] for row in timed) * 1e3


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


def line(case: Case, what: str, figures: tuple[float, float, float]) -> str:
    ours, loop, dense = figures
    cells = (
        f"{case.device} {str(case.dtype).removeprefix('torch.')} {case.hidden}x{case.width}",
        case.experts, case.tokens, what, f"{ours:.3f}", f"{case.ideal:.3f}", f"{loop:.3f}", f"{dense:.2f}",
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def entry(table: list[str]) -> str:
    """A dated entry for results.md: what ran, where, and its table."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    said = f"{datetime.date.today()}, torch {torch.__version__}, commit {commit.stdout.strip()}, {where}"
    command = f"`python benchmarks/moe_forward.py {' '.join(sys.argv[1:])}`"
    return "\n".join(["", f"## moe_forward: {said}", "", command, "", *table, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 64, 1024, 4096])
    parser.add_argument("--experts", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--record", action="store_true", help="append the figures to results.md")
    options = parser.parse_args()
    torch.manual_seed(0)
    table = [HEAD]
    todo = cases(options)
    print(HEAD, flush=True)
    for case in todo:
        for what, backward in (("forward", False), ("forward and backward", True)):
            table.append(line(case, what, measure(case, backward, options.rounds)))
            print(table[-1], flush=True)
    if options.record:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(entry(table))


if __name__ == "__main__":
    main()
