"""Run BAGEL: answers, pictures, calibration, timed workloads.

B sequences, T tokens, h by w latent tokens of a picture, D values of each.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umcompress.documents.base import TASKS, Task
from umcompress.models.bagel.context import Cache
from umcompress.models.bagel.model import Bagel
from umcompress.models.bagel.preprocess import normalise, resize, vision_input
from umcompress.models.bagel.sampling import (
    Contexts,
    Guidance,
    decode_images,
    denoise,
    guided_velocity,
    timesteps,
    to_pixels,
)
from umcompress.models.bagel.tokenizer import FolderTokenizer
from umcompress.models.items import GenerationItem, Picture, UnderstandingItem
from umcompress.models.pictures import to_image
from umcompress.models.runner import Likelihood, Runner, Work, likelihood
from umcompress.progress import passed
from umcompress.rewrite.nn.absent import kept_task, require_task

# Tokens that may stand in one batch: small models run many samples at once, the released one one by one.
BATCH_TOKENS = 4096
LARGEST_BATCH = 128
# The timed workloads: a short question, a short prompt, of no particular words.
QUESTION_TOKENS, PROMPT_TOKENS = 6, 2
# Tokens read before, in all, of the continuations that are scored in one forward.
SCORED_TOKENS = 16384
# Seconds of decoding a batch of pictures, by autoencoder, sizes, dtype and device.
_DECODING: dict[tuple[object, ...], float] = {}


class BagelRunner(Runner):
    """Runs its tasks in batches; results do not depend on what shares a batch but for rounding."""

    encodes_pictures = True

    def __init__(self, model: Bagel, folder: Path) -> None:
        self.model = model
        only = kept_task(model)
        self.tasks: tuple[Task, ...] = TASKS if only is None else (only,)
        self.folder = folder
        self.sampling = model.config.sampling
        side = self.sampling.image_size // model.config.latent_downsample
        self.size = (side, side)
        self.guidance = Guidance(
            self.sampling.cfg_text_scale, 1.0, self.sampling.cfg_interval,
            self.sampling.cfg_renorm_type, self.sampling.cfg_renorm_min,
        )

    @property
    def batch_size(self) -> int:
        """Pictures that are read or painted at once."""
        return max(1, min(LARGEST_BATCH, BATCH_TOKENS // (self.size[0] * self.size[1] + 2)))

    @property
    def sampling_settings(self) -> str:
        return f"{self.sampling} {self.guidance}"

    @cached_property
    def tokenizer(self) -> FolderTokenizer:
        """The tokenizer; sizes and workloads need none."""
        return FolderTokenizer(self.folder)

    def _batches(self, count: int) -> Iterator[slice]:
        for start in range(0, count, self.batch_size):
            yield slice(start, min(start + self.batch_size, count))

    # -- understanding -------------------------------------------------------------------------------------

    @torch.no_grad()
    def _absorb(self, images: Sequence[Any], questions: Sequence[Tensor] | None) -> Cache:
        """Pictures, then questions as token ids.  An entry may be several pictures, all entries equally many."""
        require_task(self.model, "understanding")
        cache = Cache(len(images))
        for shown in zip(*(_picture_list(entry) for entry in images), strict=True):
            self.model.absorb_vision(cache, [vision_input(image, self.model.config) for image in shown])
        if questions is not None:
            self.model.absorb_text(cache, questions)
        return cache

    def answer(
        self, images: Sequence[Any], questions: Sequence[str], max_new_tokens: int = 16
    ) -> list[str]:
        """Greedy answers, pictures first, then the question (spec: the chat entry point's order)."""
        answers = [""] * len(images)
        for part in self._batches(len(images)):
            for alike in _groups_of_equal_layout(images, part):
                questioned = [self.tokenizer.ids(questions[index]) for index in alike]
                cache = self._absorb([images[index] for index in alike], questioned)
                for index, ids in zip(alike, self.model.decode_text(cache, max_new_tokens + 1), strict=True):
                    answers[index] = self.tokenizer.decode(ids[1:]).strip()
                passed("questions", len(alike))
        return answers

    @torch.no_grad()
    def score(
        self, images: Sequence[Any], prompts: Sequence[str | None], continuations: Sequence[Sequence[str]]
    ) -> list[list[Likelihood]]:
        """As `Runner.score`: what `answer` decodes is the continuation that it would itself write.

        Space before a continuation is dropped, for an answer begins a turn of its own.
        """
        found: list[list[Likelihood]] = [[] for _ in prompts]
        for part in self._batches(len(prompts)):
            for alike in _groups_of_equal_layout(images, part, [prompt is None for prompt in prompts]):
                asked = [prompts[index] for index in alike]
                shown = [images[index] for index in alike]
                questions = [self.tokenizer.ids(prompt) for prompt in asked if prompt is not None]
                cache = self._absorb(shown, questions or None)
                wanted = [(row, text.lstrip()) for row, index in enumerate(alike) for text in continuations[index]]
                size = max(1, SCORED_TOKENS // max(1, cache.length()))
                for start in range(0, len(wanted), size):
                    some = wanted[start : start + size]
                    wide = cache.take([row for row, _ in some])
                    likely = self._likelihoods(wide, [self.tokenizer.ids(text) for _, text in some])
                    for (row, _), one in zip(some, likely, strict=True):
                        found[alike[row]].append(one)
        return found

    def _likelihoods(self, cache: Cache, wanted: Sequence[Tensor]) -> list[Likelihood]:
        """Of `wanted[b]`, written after what sequence b has read."""
        begin = torch.tensor([self.model.config.tokens.bos_token_id])
        read = [torch.cat([begin, ids])[: max(1, len(ids))] for ids in wanted]
        rows, packing = self.model.absorb_text(cache, read, wrap=False)
        # A sequence at a time: in float32 all logits of a batch would be the largest tensor of the run.
        parts = zip(packing.split(rows), wanted, strict=True)
        return [likelihood(self.model.logits(part[: len(ids)]), ids) for part, ids in parts]

    # -- generation ----------------------------------------------------------------------------------------

    def noise(self, seed: int, index: int) -> Tensor:
        """(h*w, D) initial noise of one picture: follows from `seed` and `index` alone."""
        generator = torch.Generator().manual_seed((seed * 1_000_003 + index) % 2**63)
        shape = (self.size[0] * self.size[1], self.model.config.latent_channels)
        return torch.randn(shape, generator=generator)

    @torch.no_grad()
    def _sampled_latents(
        self, prompts: Sequence[Tensor], noise: Sequence[Tensor], at_time: Callable[[float], None] | None = None
    ) -> Tensor:
        """Prompts as token ids -> latent tokens of all their pictures."""
        require_task(self.model, "generation")
        contexts = Contexts.empty(len(prompts), image_guidance=False)
        contexts.add_text(self.model, prompts)
        return denoise(
            self.model, contexts, torch.cat(list(noise)).to(self.model.device), [self.size] * len(prompts),
            self.sampling.num_timesteps, self.sampling.timestep_shift, self.guidance, at_time,
        )

    def generate(
        self, prompts: Sequence[str], seed: int, places: Sequence[int] | None = None
    ) -> list[Picture]:
        """Pictures by the folder's sampling settings."""
        pictures: list[Picture] = []
        places = range(len(prompts)) if places is None else places
        for part in self._batches(len(prompts)):
            count = part.stop - part.start
            ids = [self.tokenizer.ids(prompt) for prompt in prompts[part]]
            tokens = self._sampled_latents(ids, [self.noise(seed, place) for place in places[part]])
            pictures += [to_pixels(image) for image in decode_images(self.model, tokens, [self.size] * count)]
            passed("pictures", count)
        return pictures

    @torch.no_grad()
    def latents(self, pictures: Sequence[Any]) -> list[Tensor]:
        """(z, h, w) of each picture: where the autoencoder puts it."""
        require_task(self.model, "generation")
        dtype = self.model.vae.decoder.conv_in.weight.dtype
        found = []
        for picture in pictures:
            pixels = normalise(resize(to_image(picture), self.model.config.vae_rule))
            found.append(self.model.vae.encode(pixels[None].to(self.model.device, dtype))[0])
        return found

    # -- calibration and timing ----------------------------------------------------------------------------

    @torch.no_grad()
    def feed(
        self, items: Sequence[UnderstandingItem | GenerationItem], at_time: Callable[[float], None] | None = None
    ) -> None:
        """Answers are fed as text after the question; prompts are sampled to the end."""
        for portion in self.portions(items):
            read = [item for item in portion if isinstance(item, UnderstandingItem)]
            painted = [item for item in portion if isinstance(item, GenerationItem)]
            if read:
                questions = [self.tokenizer.ids(item.question) for item in read]
                cache = self._absorb([item.image for item in read], questions)
                self.model.absorb_text(cache, [self.tokenizer.ids(item.answer) for item in read])
            if painted:
                ids = [self.tokenizer.ids(item.prompt) for item in painted]
                self._sampled_latents(ids, [self.noise(item.seed, 0) for item in painted], at_time)
            passed("samples", len(portion))

    def portions(self, items: Sequence[Any]) -> list[list[Any]]:
        """Each of items of one kind."""
        kinds = [[item for item in items if isinstance(item, kind)] for kind in (UnderstandingItem, GenerationItem)]
        return [list(some[part]) for some in kinds for part in self._batches(len(some))]

    @torch.no_grad()
    def probe(self) -> dict[str, Tensor]:
        """Logits of a question about a grey ramp; latents and picture of one prompt."""
        found = {}
        if "understanding" in self.tasks:
            side = self.sampling.image_size
            ramp = np.linspace(0, 255, side * side * 3).astype(np.uint8).reshape(side, side, 3)
            cache = self._absorb([ramp], None)
            rows, _ = self.model.absorb_text(cache, [self.tokenizer.ids("what is in the picture?")])
            found["logits"] = self.model.logits(rows)
        if "generation" in self.tasks:
            tokens = self._sampled_latents([self.tokenizer.ids("a picture")], [self.noise(0, 0)])
            found |= {"latents": tokens, "image": decode_images(self.model, tokens, [self.size])[0]}
        return found

    @torch.no_grad()
    def pass_tokens(self, task: Task) -> int:
        """Send one sample's tokens through the network once; how many decoder rows that were.

        Understanding: a picture, a question and one token of the answer.  Generation: a prompt, then one step
        with its guidance branch; the autoencoder, which runs once a picture and not once a token, is left
        out.  Needs no tokenizer and no values: on the meta device it costs nothing.
        """
        if task == "understanding":
            cache = self._absorb([self._grey()], [_zero_ids(QUESTION_TOKENS)])
            rows, _ = self.model.absorb_text(cache, [_zero_ids(1)], wrap=False)
            self.model.logits(rows)
            return cache.length()
        contexts = Contexts.empty(1, image_guidance=False)
        contexts.add_text(self.model, [_zero_ids(PROMPT_TOKENS)])
        latents = self.noise(0, 0).to(self.model.device)
        guided_velocity(self.model, contexts, latents, 1.0, [self.size], self.guidance)
        branches = 2 if self.guidance.at(1.0).text_scale > 1 else 1
        return contexts.full.length() + branches * (len(latents) + 2)

    def workload(self, task: Task) -> Work:
        """Understanding: read a batch, decode eight tokens each.  Generation: paint a batch, few of its steps."""
        count = min(self.batch_size, 16)
        return self._understanding_work(count) if task == "understanding" else self._generation_work(count)

    @torch.no_grad()
    def _generation_work(self, count: int) -> Work:
        """The seconds of a whole picture, from the prompts, one step with guidance, one without, and the decoding.

        Steps of a kind all do the same work; each kind is timed at the time in the middle of its own. No pass
        changes the autoencoder: its decoding is timed once a process, and every model's seconds hold the same.
        """
        times = timesteps(self.sampling.num_timesteps, self.sampling.timestep_shift).tolist()[:-1]
        guided = [t for t in times if self.guidance.at(t).text_scale > 1]
        x = torch.cat([self.noise(0, place) for place in range(count)]).to(self.model.device)
        sizes = [self.size] * count
        contexts = Contexts.empty(count, image_guidance=False)
        seconds = self._seconds(lambda: contexts.add_text(self.model, [_zero_ids(PROMPT_TOKENS)] * count))
        for kind in (guided, [t for t in times if t not in guided]):
            if kind:
                t = kind[len(kind) // 2]
                step = partial(guided_velocity, self.model, contexts, x, t, sizes, self.guidance)
                seconds += len(kind) * self._seconds(step)
        seconds += self._decoding_seconds(x, sizes)
        return Work(seconds, {"image_seconds": seconds / count})

    def _decoding_seconds(self, x: Tensor, sizes: Sequence[tuple[int, int]]) -> float:
        weight = self.model.vae.decoder.conv_in.weight
        entry = (self.model.config.autoencoder.model_dump_json(), tuple(sizes), weight.dtype, weight.device)
        if entry not in _DECODING:
            timed = [self._seconds(lambda: decode_images(self.model, x, sizes)) for _ in range(4)]
            _DECODING[entry] = statistics.median(timed[1:])  # the first warms up
        return _DECODING[entry]

    def _seconds(self, work: Callable[[], object]) -> float:
        self._synchronize()
        started = time.perf_counter()
        work()
        self._synchronize()
        return time.perf_counter() - started

    @torch.no_grad()
    def _understanding_work(self, count: int, new_tokens: int = 8) -> Work:
        started = time.perf_counter()
        cache = self._absorb([self._grey()] * count, [_zero_ids(QUESTION_TOKENS)] * count)
        token = torch.full((1,), self.model.config.tokens.bos_token_id)
        first = started
        for step in range(new_tokens):
            rows, _ = self.model.absorb_text(cache, [token] * count, wrap=False)
            self.model.logits(rows).argmax(-1)
            if step == 0:
                self._synchronize()
                first = time.perf_counter()
        self._synchronize()
        ended = time.perf_counter()
        measures = {
            "first_token_seconds": (first - started) / count,
            "tokens_per_second": count * (new_tokens - 1) / (ended - first),
        }
        return Work(ended - started, measures)

    def _grey(self) -> Picture:
        side = self.sampling.image_size
        return np.full((side, side, 3), 230, dtype=np.uint8)

    def settings(self, steps: int | None = None, guidance: float | None = None) -> None:
        """Other sampling settings than the folder's: denoising steps, text guidance scale."""
        if steps is not None:
            self.sampling = self.sampling.model_copy(update={"num_timesteps": steps + 1})
        if guidance is not None:
            self.guidance = replace(self.guidance, text_scale=guidance)

    def _synchronize(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)


def _picture_list(entry: Any) -> Sequence[Any]:
    if entry is None:
        return []
    return entry if isinstance(entry, list | tuple) else [entry]


def _groups_of_equal_layout(images: Sequence[Any], part: slice, kinds: Sequence[bool] | None = None) -> list[list[int]]:
    """The places of a part of the entries, those with equally many pictures (and of one kind) together."""
    groups: dict[tuple[int, bool], list[int]] = {}
    for index in range(part.start, part.stop):
        kind = kinds is not None and kinds[index]
        groups.setdefault((len(_picture_list(images[index])), kind), []).append(index)
    return list(groups.values())


def _zero_ids(length: int) -> Tensor:
    return torch.zeros(length, dtype=torch.long)
