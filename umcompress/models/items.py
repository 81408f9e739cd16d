"""The items that models are asked about or trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class UnderstandingItem:
    """Calibration or training data: a picture (h, w, 3), a question, the answer that is fed with it."""

    image: Any
    question: str
    answer: str


@dataclass(frozen=True)
class GenerationItem:
    """A prompt without a picture.

    Calibration feeds the whole sampling run, every step and every guidance branch.  Training stops in some steps of it,
    where the unpruned model says what is right.
    """

    prompt: str
    seed: int


@dataclass(frozen=True)
class ImageText:
    """Training data for generation: a picture (h, w, 3) and the prompt that asks for it."""

    image: Any
    prompt: str


@dataclass(frozen=True)
class TextSample:
    """Training data for a plain language model."""

    text: str


TrainingItem: TypeAlias = ImageText | UnderstandingItem | TextSample | GenerationItem
