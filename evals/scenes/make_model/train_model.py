"""The model itself, after autoencoder and vision tower: first understanding, then generation.

Generation is trained with all weights of understanding left as they are: trained together, the text stream takes part
in composing pictures, and what understanding could spare is spent on generation.
Understanding samples carry several questions about one picture, most of them after a dense description of the
scene: with one question a picture, counting and position stay at chance for very long.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from umcompress.evals.scenes import prompts, questions, world
from umcompress.evals.scenes.make_model.training import (
    Log,
    Settings,
    cosine,
    load_checkpoint,
    save_checkpoint,
    to_tensor,
)
from umcompress.extend import ModelError
from umcompress.models.bagel.config import BagelConfig
from umcompress.models.bagel.context import Cache
from umcompress.models.bagel.model import Bagel
from umcompress.models.bagel.training import Item, Sample, TextItem, VisionItem, training_forward


class Encoder:
    """Text to ids, remembered: the world has few words and the tokenizer is slow for single strings."""

    def __init__(self) -> None:
        from umcompress.evals.scenes.tokenizer import build_tokenizer

        tokenizer = build_tokenizer()
        self._ids = tokenizer.get_vocab()

    def __call__(self, text: str) -> Tensor:
        words = text.replace(",", " ,").replace("?", " ?").split()
        return torch.tensor([self._ids[word] for word in words])


# -- understanding -----------------------------------------------------------------------------------------


# What is learned last is asked more often.
ASKED = ("existence", "count", "comparison", "position", "position", "existence", "count", "color")


def understanding_samples(encode: Encoder, settings: Settings, rng: np.random.Generator) -> list[Sample]:
    """Picture, often a description with loss, then questions and answers (loss on the answers)."""
    samples: list[Sample] = []
    for _ in range(settings.understanding_batch):
        scene = world.sample_scene(rng)
        items: list[Item] = [VisionItem(to_tensor(world.render(scene)))]
        if rng.random() < settings.description_share:
            items.append(TextItem(encode(questions.describe(scene, shapes=False)), True))
        for question in questions.sample_questions(rng, scene, settings.questions, ASKED):
            items += [TextItem(encode(question.text)), TextItem(encode(question.answer), True)]
        samples.append(items)
    return samples


def train_understanding(model: Bagel, settings: Settings, out: Path, log: Log) -> Bagel:
    """Train everything but the generation weights and the autoencoder; returns the averaged model."""
    encode = Encoder()

    def loss(rng: np.random.Generator) -> Tensor:
        return training_forward(model, understanding_samples(encode, settings, rng)).loss()

    for name, weight in model.named_parameters():
        weight.requires_grad_(is_understanding(name))
    stage = Stage("understanding", 3, settings.understanding_steps, settings.understanding_lr, 0.99)
    return run_stage(model, stage, loss, settings, out, log)


# -- generation --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paintings:
    """A batch to learn from: what the frozen understanding stream makes of the texts, and the pictures' latents.

    `read` holds keys and values of B texts, `clean` the latent tokens (B * 9, D).
    """

    read: Cache
    clean: Tensor


@torch.no_grad()
def paintings(model: Bagel, settings: Settings) -> list[Paintings]:
    """All batches.  Texts and pictures pass the frozen parts once; noise and times are new in each step."""
    encode, size = Encoder(), settings.generation_batch
    batches = []
    for index in range(settings.pictures // size):
        rng = np.random.default_rng((settings.seed, 5, index))
        pairs = [_described_picture(rng, settings.layout_share) for _ in range(size)]
        latents = model.vae.encode(torch.stack([to_tensor(world.render(scene)) for _, scene in pairs]))
        read = Cache(size)
        model.absorb_text(read, [encode(text) for text, _ in pairs])
        batches.append(Paintings(read, torch.cat([model.latent_tokens(latent) for latent in latents])))
    return batches


# Two objects with looks of their own are learned last and come most often.
KINDS = {
    "single_object": 0.06, "two_object": 0.14, "counting": 0.16, "colors": 0.10, "position": 0.28,
    "color_attr": 0.26,
}  # fmt: skip
DESCRIBED = 3  # objects of a described picture at most, so that its text is no longer than the longest prompts


def generation_text(rng: np.random.Generator, layout_share: float) -> tuple[str, prompts.Prompt | world.Scene]:
    """A text to paint and what it tells of: a prompt, or the dense description of a scene, which teaches faster."""
    if rng.random() < layout_share:
        scene = world.sample_scene(rng, objects=1 + int(rng.integers(DESCRIBED)))
        return questions.describe(scene), scene
    prompt = prompts.sample_prompt(rng, str(rng.choice(list(KINDS), p=list(KINDS.values()))))
    return prompt.text, prompt


def _described_picture(rng: np.random.Generator, layout_share: float) -> tuple[str, world.Scene]:
    """A text and a scene that satisfies it."""
    text, source = generation_text(rng, layout_share)
    return text, prompts.scene_for_prompt(rng, source) if isinstance(source, prompts.Prompt) else source


def flow_loss(model: Bagel, batch: Paintings, settings: Settings, rng: np.random.Generator) -> Tensor:
    """Squared error of the velocity; a share of the batches goes without its texts, for guidance."""
    count = batch.read.batch
    raw = torch.from_numpy(rng.standard_normal((count, 1), dtype=np.float32))
    noise = torch.from_numpy(rng.standard_normal(tuple(batch.clean.shape), dtype=np.float32))
    read = Cache(count) if rng.random() < settings.text_dropout else batch.read
    t = torch.sigmoid(raw).repeat_interleave(len(batch.clean) // count, dim=0)
    t = settings.timestep_shift * t / (1 + (settings.timestep_shift - 1) * t)
    noisy = (1 - t) * batch.clean + t * noise
    velocity = model.velocity(read, noisy, t[:, 0], [(world.GRID, world.GRID)] * count)
    return ((velocity - (noise - batch.clean)) ** 2).mean()


def train_generation(model: Bagel, settings: Settings, out: Path, log: Log) -> Bagel:
    """Train the generation weights alone; returns the averaged model."""
    batches = paintings(model, settings)
    log.write("paintings", 0, {"batches": len(batches)})

    def loss(rng: np.random.Generator) -> Tensor:
        return flow_loss(model, batches[int(rng.integers(len(batches)))], settings, rng)

    for name, weight in model.named_parameters():
        weight.requires_grad_(is_generation(name))
    stage = Stage("generation", 6, settings.generation_steps, settings.generation_lr, 0.999)
    return run_stage(model, stage, loss, settings, out, log)


def is_generation(name: str) -> bool:
    """Whether a weight of the model takes part in painting alone."""
    return "_moe_gen" in name or name.startswith(("time_embedder.", "vae2llm.", "llm2vae."))


def is_understanding(name: str) -> bool:
    """Whether a weight learns before painting does: not of painting, nor of the autoencoder, nor a fixed table."""
    return not (name.startswith("vae.") or is_generation(name) or name.endswith("pos_embed"))


# -- both --------------------------------------------------------------------------------------------------


def initialise(model: Bagel) -> None:
    """Every linear keeps the variance of its input, residual outputs start small, the velocity head at zero.

    With the narrow normal (0.02 to 0.04) that large models use, a decoder this small never learns to look at
    shapes.
    """
    for name, module in model.named_modules():
        if name.startswith(("vae.", "vae2llm.", "vit_model")):
            continue
        if isinstance(module, nn.Linear):
            small = 0.3 if name.split(".")[-1].startswith(("o_proj", "down_proj")) else 1.0
            nn.init.normal_(module.weight, std=small * module.weight.shape[1] ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
    nn.init.zeros_(model.llm2vae.weight)


def new_model(config: BagelConfig, autoencoder: nn.Module, seed: int) -> Bagel:
    """An untrained model around a trained, frozen autoencoder."""
    torch.manual_seed(seed)
    model = Bagel(config)
    initialise(model)
    model.vae.load_state_dict(autoencoder.state_dict())
    model.vae.requires_grad_(False)
    return model


# Random numbers of one step -> its loss.
Loss = Callable[[np.random.Generator], Tensor]


@dataclass(frozen=True)
class Stage:
    """What a stage is called, which random numbers are its own, how long it lasts and how fast it learns.

    decay: of the running mean of the weights, which is what remains of the stage.
    """

    name: str
    draws: int
    steps: int
    rate: float
    decay: float


def run_stage(
    model: Bagel, stage: Stage, loss_of: Loss, settings: Settings, out: Path, log: Log
) -> Bagel:
    """Train what requires gradients, resuming from `out/<stage>.safetensors` if it is there; the averaged model."""
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = _optimizer(model, settings, stage.rate)
    checkpoint = out / stage.name
    given = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    start = load_checkpoint(checkpoint, {"model": model, "average": average}, optimizer)
    _require_same_frozen(model, given, checkpoint)
    trained = [p for p in model.parameters() if p.requires_grad]
    for step in range(start, stage.steps):
        rate = cosine(step, stage.steps, settings.warm_up) * stage.rate
        for group in optimizer.param_groups:
            group["lr"] = rate
        # Every random number follows from seed, stage and step.
        rng = np.random.default_rng((settings.seed, stage.draws, step))
        model.zero_grad(set_to_none=True)
        # The fused CPU attention is slow backwards at these lengths; plain matrix products are twice as fast.
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16), sdpa_kernel(SDPBackend.MATH):
            loss = loss_of(rng)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        _average(average, model, min(stage.decay, (step + 1) / (step + 10)))
        last = step == stage.steps - 1
        if step % 50 == 0 or last:
            log.write(stage.name, step, {"loss": float(loss.detach()), "norm": float(norm), "lr": rate})
        if (step + 1) % 250 == 0 or last:
            save_checkpoint(checkpoint, {"model": model, "average": average}, optimizer, step + 1)
    return average


def _require_same_frozen(model: Bagel, given: Mapping[str, Tensor], checkpoint: Path) -> None:
    """Refuse other frozen weights than the stage began with: of another autoencoder, latents would mean nothing."""
    other = [name for name, p in model.named_parameters() if name in given and not p.equal(given[name])]
    if other:
        raise ModelError(
            f"go on with {checkpoint.with_suffix('.safetensors')}",
            f"it was begun with other weights of earlier stages ({other[0]} and {len(other) - 1} more)",
            "remove it, and the stage begins anew",
        )


def _optimizer(model: Bagel, settings: Settings, rate: float) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-8, fused=True)


@torch.no_grad()
def _average(average: nn.Module, model: nn.Module, decay: float) -> None:
    pairs = zip(average.parameters(), model.parameters(), strict=True)
    ours: list[Tensor] = []
    theirs: list[Tensor] = []
    for p, q in pairs:
        if q.requires_grad:
            ours.append(p)
            theirs.append(q)
    torch._foreach_lerp_(ours, theirs, 1 - decay)
