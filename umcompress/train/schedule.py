"""The learning rate and the running mean's decay of each step; plain numbers."""

from __future__ import annotations

import math

from umcompress.learning import TrainingOptions

# The cosine ends at this share of the highest rate, so that the last steps still do something.
FLOOR = 0.02


def rate(step: int, options: TrainingOptions) -> float:
    """The rate of step `step` (from 0): a linear rise over `warm_up`, then half a cosine down to FLOOR, or constant."""
    if step < options.warm_up:
        return options.learning_rate * (step + 1) / options.warm_up
    if options.schedule == "constant":
        return options.learning_rate
    progress = (step - options.warm_up) / max(1, options.steps - options.warm_up)
    return options.learning_rate * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * progress)))


def decay(step: int, ema: float) -> float:
    """The decay after step `step`: less at the start, where the mean would else hold on to the first weights."""
    return min(ema, (step + 1) / (step + 10))
