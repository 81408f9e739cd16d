"""Reading, between understanding and generation: whose attribute is whose in a text that has no picture.

Questions about pictures never ask this of a text, so the text stream that they train mixes up the looks of two objects
in a prompt, and generation, which only reads what this stream makes of it, does so too. Here texts are told again in
other words, the objects in another order. The feed-forwards of the text stream learn from pictures alone: the texts
train attention, norms and embeddings, which is all that copying needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from umcompress.evals.scenes import prompts, world
from umcompress.evals.scenes.glyphs import PLURALS
from umcompress.evals.scenes.make_model.train_model import (
    Encoder,
    Stage,
    generation_text,
    is_understanding,
    run_stage,
    understanding_samples,
)
from umcompress.evals.scenes.make_model.training import Log, Settings
from umcompress.models.bagel.model import Bagel
from umcompress.models.bagel.training import Sample, TextItem, training_forward

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def told_again(rng: np.random.Generator, prompt: prompts.Prompt) -> str:
    """The objects of a prompt in random order, noun first: "cup dotted blue right of, star plain red left of"."""
    include = prompt.metadata["include"]
    relation = next((clause["position"][0] for clause in include if "position" in clause), None)
    things = []
    for clause in include:
        count, shape = clause["count"], clause["class"]
        words = [shape] if count == 1 else [PLURALS[shape], prompts.NUMBERS[count]]
        words += [clause["color"]] if "color" in clause else []
        if relation is not None:
            words.append(relation if "position" in clause else prompts.OPPOSITE[relation])
        things.append(" ".join(words))
    return ", ".join(things[int(index)] for index in rng.permutation(len(things)))


def description_again(rng: np.random.Generator, scene: world.Scene) -> str:
    """The objects of a dense description in random order, place first: "center square dotted blue"."""
    things = [f"{world.CELL_NAMES[o.cell]} {o.shape} {o.look}" for o in scene.objects]
    return ", ".join(things[int(index)] for index in rng.permutation(len(things)))


def reading_samples(encode: Encoder, settings: Settings, rng: np.random.Generator) -> list[Sample]:
    """A text as generation gets it, then the same in other words (loss on these)."""
    samples: list[Sample] = []
    for _ in range(settings.reading_batch):
        text, source = generation_text(rng, settings.layout_share)
        again = told_again(rng, source) if isinstance(source, prompts.Prompt) else description_again(rng, source)
        samples.append([TextItem(encode(text)), TextItem(encode(again), True)])
    return samples


def train_reading(model: Bagel, settings: Settings, out: Path, log: Log) -> Bagel:
    """Train what `train_understanding` trains on pictures as there, and all but its feed-forwards on texts."""
    encode = Encoder()
    trained = {
        name: weight
        for name, weight in model.named_parameters()
        if is_understanding(name)
    }
    feed_forwards = [weight for name, weight in trained.items() if is_feed_forward(name)]

    def loss(rng: np.random.Generator) -> Tensor:
        pictures = training_forward(model, understanding_samples(encode, settings, rng)).loss()
        for weight in feed_forwards:
            weight.requires_grad_(False)
        texts = training_forward(model, reading_samples(encode, settings, rng)).loss()
        for weight in feed_forwards:
            weight.requires_grad_(True)
        return pictures + texts

    for name, weight in model.named_parameters():
        weight.requires_grad_(name in trained)
    stage = Stage("reading", 4, settings.reading_steps, settings.reading_lr, 0.99)
    return run_stage(model, stage, loss, settings, out, log)


def is_feed_forward(name: str) -> bool:
    """Whether a weight is of a feed-forward of the text stream."""
    return name.startswith("language_model.") and ".mlp." in name
