"""The schedules of a training: learning rate and decay of the weight average at each step."""

from __future__ import annotations

import math

from umcompress.documents.training_options import TrainingOptions

# The cosine ends at this share of the highest rate, so that the last steps still do something.
FLOOR = 0.02
# Tuned on bagel-mini, whose stream is 192 wide: 1e-3 there, 6e-5 at 3584.
PER_INPUT = 0.2


def peak_rate(options: TrainingOptions, inputs: int) -> float:
    """The rate after the warm-up.  A step of Adam moves an output by the rate times the number of inputs: what works
    at one width is divided by another."""
    return PER_INPUT / inputs if options.learning_rate is None else options.learning_rate


def learning_rate(step: int, options: TrainingOptions, highest: float) -> float:
    """The rate of step `step` (from 0): a linear rise over `warm_up`, then half a cosine down to FLOOR, or constant."""
    if step < options.warm_up:
        return highest * (step + 1) / options.warm_up
    if options.schedule == "constant":
        return highest
    progress = (step - options.warm_up) / max(1, options.steps - options.warm_up)
    return highest * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * progress)))


def average_decay(step: int, ema: float) -> float:
    """The decay after step `step`: less at the start, where the mean would else hold on to the first weights."""
    return min(ema, (step + 1) / (step + 10))
