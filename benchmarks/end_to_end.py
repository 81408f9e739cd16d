"""Whole models whose feed-forwards are 16 experts of which 8 run, over dense ones that multiply by the same kernel.

    python benchmarks/end_to_end.py [--rounds 5] [--clock wall] [--record]      # about three minutes on one core

A Llama (1024 x 4096, 4 blocks, random weights) that reads 256 tokens, and one that decodes 64 after them; a BAGEL of
the same sizes that makes a guided denoising step of 256 latents behind a prompt of 32 tokens, its generation stream
split. `ideal` is what the work alone would give: the multiply-accumulates of the model with experts over those of the
dense one. In each round all run in turn; ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from _results import record
from moe_forward import CLOCKS, WARMUP, Case, Dense, GatedSilu, Split
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from umcompress.models.bagel.config import AutoencoderConfig, BagelConfig, SpecialTokens, TextConfig, VisionConfig
from umcompress.models.bagel.model import Bagel
from umcompress.models.bagel.sampling import Contexts, Guidance, guided_velocity
from umcompress.rewrite.nn.experts import ExpertShape, SparseFeedForward

HIDDEN, WIDTH, LAYERS, HEADS = 1024, 4096, 4, 16
SPLIT = Split(16, 8)
READ, DECODED, PROMPT, SIDE = 256, 64, 32, 16
# Makes the feed-forward of a block.
Make = Callable[[], nn.Module]


class Whole(Dense):
    """x (..., H), whose rows are multiplied together: the product takes matrices."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(-1, x.shape[-1])).reshape(x.shape)


def sparse() -> nn.Module:
    shape = ExpertShape(
        HIDDEN, SPLIT.experts, SPLIT.active, WIDTH // SPLIT.experts, ("gate_proj", "up_proj"), "down_proj",
        (False, False), False,
    )  # fmt: skip
    made = SparseFeedForward(shape, GatedSilu())
    for name, parameter in made.named_parameters():
        nn.init.normal_(parameter, std=HIDDEN**-0.5 if name == "gate.weight" else 0.02)
    return made


def dense() -> nn.Module:
    return Whole(HIDDEN, WIDTH)


def counted() -> nn.Module:
    """As `dense`, by linears that the counter of operations knows."""
    return Whole(HIDDEN, WIDTH, nn.Linear)


def llama(make: Make) -> Any:
    config = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, vocab_size=8192,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    for layer in model.model.layers:
        layer.mlp = make()
    return model.eval()


def bagel(make: Make) -> Bagel:
    text = TextConfig(
        hidden_size=HIDDEN, intermediate_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, vocab_size=256,
    )  # fmt: skip
    vision = VisionConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, patch_size=14, image_size=56
    )
    marks = SpecialTokens(bos_token_id=1, eos_token_id=2, start_of_image=3, end_of_image=4)
    model = Bagel(BagelConfig(text=text, vision=vision, autoencoder=AutoencoderConfig(ch=32), tokens=marks))
    for layer in model.language_model.model.layers:
        assert isinstance(layer, nn.Module)
        layer.mlp_moe_gen = make()
    return model.eval()


def prefill(model: Any) -> Callable[[], object]:
    ids = torch.randint(0, 8192, (1, READ))
    return lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1)


def decode(model: Any) -> Callable[[], object]:
    """From the cache of the tokens that were read, which is as before afterwards."""
    ids = torch.randint(0, 8192, (1, READ))
    kept = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values

    def work() -> None:
        token = ids[:, :1]
        for _ in range(DECODED):
            token = model(input_ids=token, past_key_values=kept, use_cache=True).logits[:, -1:].argmax(-1)
        kept.crop(-DECODED)

    return work


def step(model: Bagel) -> Callable[[], object]:
    contexts = Contexts.empty(1, image_guidance=False)
    contexts.add_text(model, [torch.arange(PROMPT)])
    latents = torch.randn(SIDE * SIDE, model.config.latent_channels)
    return lambda: guided_velocity(model, contexts, latents, 0.8, [(SIDE, SIDE)], Guidance())


CASES: dict[str, tuple[Callable[[Make], Any], Callable[[Any], Callable[[], object]], int]] = {
    # How many rows a forward has in all that is split.
    f"Llama, prefill {READ}": (llama, prefill, READ),
    f"Llama, decode {DECODED}": (llama, decode, DECODED),
    f"BAGEL, a guided step of {SIDE * SIDE} latents": (bagel, step, 2 * SIDE * SIDE),
}


def ideal(work: Callable[[], object], rows: int) -> float:
    """Of the multiply-accumulates, those of the feed-forwards that are split shrink to their share."""
    with FlopCounterMode(display=False) as counter:
        work()
    feed_forwards = rows * LAYERS * 3 * HIDDEN * WIDTH
    share = Case("cpu", torch.float32, HIDDEN, WIDTH, SPLIT, rows).ideal
    whole: float = counter.get_total_flops() / 2
    return 1 - (1 - share) * feed_forwards / whole


@torch.no_grad()
def measured(name: str, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    build, run, rows = CASES[name]
    works = {kind: run(build(make)) for kind, make in (("experts", sparse), ("dense", dense))}
    timed: list[dict[str, float]] = []
    for _ in range(WARMUP + rounds):
        timed.append({kind: _seconds(work, clock) for kind, work in works.items()})
    del timed[:WARMUP]
    ratio = statistics.median(row["experts"] / row["dense"] for row in timed)
    best = ideal(run(build(counted)), rows)
    return {
        "experts / dense": ratio, "ideal": best, "over ideal": ratio / best,
        "dense ms": statistics.median(row["dense"] for row in timed) * 1e3,
    }  # fmt: skip


def _seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    work()
    return clock() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--clock", choices=list(CLOCKS), default="wall", help="processor: for a busy machine, with OMP_NUM_THREADS=1"
    )
    parser.add_argument("--record", action="store_true", help="append the figures to results.md")
    options = parser.parse_args()
    torch.manual_seed(0)
    started, rows = time.monotonic(), dict[str, dict[str, float]]()
    for name in CASES:
        rows[name] = measured(name, options.rounds, CLOCKS[options.clock])
        print(f"{name:40s}", *(f"{key} {value:.3f}" for key, value in rows[name].items()), flush=True)
    print(f"{time.monotonic() - started:.0f} s in all")
    if options.record:
        record("end_to_end", vars(options), rows)


if __name__ == "__main__":
    main()
