"""Third stage of training `bagel-mini`: both tasks together, through the packed training forward.

Understanding samples carry several questions about one picture, most of them after a dense description of the
scene: with one question a picture, counting and position stay at chance for very long.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
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
from umcompress.models.bagel.config import BagelConfig
from umcompress.models.bagel.model import Bagel
from umcompress.models.bagel.training import Item, LatentItem, Sample, TextItem, VisionItem, training_forward


class Encoder:
    """Text to ids, remembered: the world has few words and the tokenizer is slow for single strings."""

    def __init__(self) -> None:
        from umcompress.evals.scenes.tokenizer import build_tokenizer

        self._tokenizer = build_tokenizer()
        self._known: dict[str, Tensor] = {}

    def __call__(self, text: str) -> Tensor:
        if text not in self._known:
            self._known[text] = torch.tensor(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._known[text]


def generation_samples(
    model: Bagel, encode: Encoder, settings: Settings, rng: np.random.Generator, finish: bool = False
) -> list[Sample]:
    """Text, then its picture's latent with noise.  The kinds that come last in training come more often."""
    count, side = settings.generation_batch, model.config.latent_patch_size
    share, kinds = (settings.finish_layout_share, FINISH_KINDS) if finish else (settings.layout_share, KINDS)
    pairs = [_described_picture(rng, share, kinds) for _ in range(count)]
    images = torch.stack([to_tensor(world.render(scene)) for _, scene in pairs])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
        latents = model.vae.encode(images).float()
    tokens = latents.shape[2] * latents.shape[3] // side**2
    shape = (count, tokens, model.config.latent_channels)
    noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    raw = rng.standard_normal(count)
    dropped = rng.random(count) < settings.text_dropout
    samples: list[Sample] = []
    for index, (text, _) in enumerate(pairs):
        items: list[Item] = [] if dropped[index] else [TextItem(encode(text))]
        samples.append([*items, LatentItem(latents[index], True, float(raw[index]), noise[index])])
    return samples


def _described_picture(
    rng: np.random.Generator, layout_share: float, kinds: Mapping[str, float]
) -> tuple[str, world.Scene]:
    """A text and a scene that satisfies it: a prompt, or the dense description, which teaches faster."""
    if rng.random() < layout_share:
        scene = world.sample_scene(rng)
        return questions.describe(scene), scene
    kind = str(rng.choice(list(kinds), p=list(kinds.values())))
    prompt = prompts.sample_prompt(rng, kind)
    return prompt.text, prompts.scene_for_prompt(rng, prompt)


KINDS = {
    "single_object": 0.10, "two_object": 0.16, "counting": 0.20, "colors": 0.10, "position": 0.24,
    "color_attr": 0.20,
}
# In the finish, relations between two objects, which are learned last, come more often than all else.
FINISH_KINDS = {
    "single_object": 0.06, "two_object": 0.14, "counting": 0.24, "colors": 0.06, "position": 0.36,
    "color_attr": 0.14,
}
FINISH_QUESTIONS = ("position", "position", "position", "count", "comparison", "color", "existence")


def understanding_samples(
    encode: Encoder, settings: Settings, rng: np.random.Generator, kinds: Sequence[str] | None = None
) -> list[Sample]:
    """Picture, often a description with loss, then questions and answers (loss on the answers)."""
    samples: list[Sample] = []
    for _ in range(settings.understanding_batch):
        scene = world.sample_scene(rng)
        items: list[Item] = [VisionItem(to_tensor(world.render(scene)))]
        if rng.random() < settings.description_share:
            items.append(TextItem(encode(questions.describe(scene)), True))
        for question in questions.sample_questions(rng, scene, settings.questions, kinds):
            items += [TextItem(encode(question.text)), TextItem(encode(question.answer), True)]
        samples.append(items)
    return samples


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


def train_model(model: Bagel, settings: Settings, out: Path, log: Log) -> Bagel:
    """Train, resuming from `out/model.safetensors` if it is there; returns the averaged model."""
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = _optimizer(model, settings)
    checkpoint = out / "model"
    start = load_checkpoint(checkpoint, {"model": model, "average": average}, optimizer)
    encode = Encoder()
    last = settings.steps + settings.finish_steps - 1
    for step in range(start, last + 1):
        rate = learning_rate(step, settings)
        for group in optimizer.param_groups:
            group["lr"] = rate
        losses = _step(model, encode, settings, step)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        _average(average, model, min(settings.ema, (step + 1) / (step + 10)))
        if step % 50 == 0 or step == last:
            log.write("model", step, losses | {"norm": float(norm), "lr": rate})
        if (step + 1) % 500 == 0 or step in (settings.steps - 1, last):
            save_checkpoint(checkpoint, {"model": model, "average": average}, optimizer, step + 1)
    return average


def learning_rate(step: int, settings: Settings) -> float:
    """One cosine over `steps`, then a short second one over `finish_steps`."""
    if step < settings.steps:
        return cosine(step, settings.steps, settings.warm_up) * settings.lr
    return cosine(step - settings.steps, settings.finish_steps, 20) * settings.finish_lr


def _optimizer(model: Bagel, settings: Settings) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98), eps=1e-8)


def _step(model: Bagel, encode: Encoder, settings: Settings, step: int) -> dict[str, float]:
    """Gradients of one step into the model; every random number follows from seed and step."""
    rng = np.random.default_rng((settings.seed, 3, step))
    model.zero_grad(set_to_none=True)
    losses = {}
    finish = step >= settings.steps
    painted = generation_samples(model, encode, settings, rng, finish)
    read = understanding_samples(encode, settings, rng, FINISH_QUESTIONS if finish else None)
    for name, samples, weight in (("mse", painted, 1.0), ("ce", read, settings.understanding_weight)):
        # The fused CPU attention is slow backwards at these lengths; plain matrix products are twice as fast.
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16), sdpa_kernel(SDPBackend.MATH):
            output = training_forward(model, samples, settings.timestep_shift)
            loss = output.loss()
        (weight * loss).backward()  # type: ignore[no-untyped-call]
        losses[name] = float(loss.detach())
    return losses


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
