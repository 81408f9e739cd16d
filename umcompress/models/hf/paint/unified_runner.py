"""Models of transformers that see and paint: answers about pictures, pictures of prompts, calibration on both."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    ChameleonForConditionalGeneration,
    Emu3ForConditionalGeneration,
    JanusForConditionalGeneration,
    PreTrainedModel,
)

from umcompress.documents.base import Task
from umcompress.errors import UsageError
from umcompress.models.hf.anatomy.stacks import find_stacks
from umcompress.models.hf.ask.carried_state import carried_state
from umcompress.models.hf.ask.picture_runner import PictureQuestionRunner
from umcompress.models.hf.ask.text_runner import NEW_TOKENS, PASS_TOKENS, TransformersRunner, batched_experts
from umcompress.models.hf.ask.vision_runner import VisionLanguageRunner, takes_pictures_and_text
from umcompress.models.hf.inputs import (
    ids_without_special_tokens,
    require_inputs,
    require_untied_stacks,
    text_generating_part,
)
from umcompress.models.hf.load.skeleton import buffers_on_meta, is_shapes_only
from umcompress.models.hf.paint.chameleon import ChameleonPictureCodes
from umcompress.models.hf.paint.emu3 import Emu3PictureCodes
from umcompress.models.hf.paint.janus import JanusPictureCodes
from umcompress.models.hf.paint.picture_codes import PictureCodes
from umcompress.models.hf.paint.sampling import Sampling, generator_of, paint
from umcompress.models.items import GenerationItem, Picture, TextSample, UnderstandingItem
from umcompress.models.runner import Likelihood, Work
from umcompress.progress import passed
from umcompress.rewrite.nn.absent import kept_task, require_task

# Codes that are painted in one batch, over all of its branches.
PAINTED_TOKENS = 16384
LARGEST_BATCH = 64
# Few in checks: out of core each is a trip through all weights.
QUESTION_TOKENS, PROMPT_TOKENS, PROBE_CODES = 6, 8, 3
_PICTURE_CODES: tuple[tuple[type[PreTrainedModel], type[PictureCodes]], ...] = (
    (JanusForConditionalGeneration, JanusPictureCodes),
    (Emu3ForConditionalGeneration, Emu3PictureCodes),
    (ChameleonForConditionalGeneration, ChameleonPictureCodes),
)


def runner(model: PreTrainedModel, folder: Path) -> TransformersRunner:
    """By the model's class."""
    model = text_generating_part(model)
    require_inputs(model)
    require_untied_stacks(model, find_stacks(model))
    found = next((pictures for kind, pictures in _PICTURE_CODES if isinstance(model, kind)), None)
    if found is not None:
        return UnifiedRunner(model, folder, found)
    return VisionLanguageRunner(model, folder) if takes_pictures_and_text(model) else TransformersRunner(model, folder)


class UnifiedRunner(PictureQuestionRunner):
    """Both tasks, or understanding alone where codes become no picture.

    What shares a batch changes results only by rounding. Calibration items of one length share a batch, so that
    statistics see tokens and no padding.
    """

    # Image tokens are sampled for calibration also where they become no picture.
    calibrates: tuple[Task, ...] = ("understanding", "generation")

    def __init__(self, model: PreTrainedModel, folder: Path, kind: type[PictureCodes]) -> None:
        super().__init__(model, folder)
        self.pictures = self.preparer = kind(model, folder)
        self.tasks: tuple[Task, ...] = ("understanding",)
        if kind.no_decoder is None:
            self.tasks = ("understanding", "generation")
        if (only := kept_task(model)) is not None:
            self.tasks = self.calibrates = (only,)
        self.reads_pictures = self.reads_texts = "understanding" in self.tasks
        self.sampling = Sampling(kind.guidance, top_k=kind.top_k).of(getattr(model, "generation_config", None))

    @property
    def generates_text(self) -> bool:
        return self.reads_texts and super().generates_text

    # -- understanding ---------------------------------------------------------------------------------------

    def answer(self, images: Sequence[Any], questions: Sequence[str], max_new_tokens: int = 16) -> list[str]:
        require_task(self.model, "understanding")
        return super().answer(images, questions, max_new_tokens)

    def logits(self, ids: Tensor) -> Tensor:
        require_task(self.model, "understanding")
        return super().logits(ids)

    def score(
        self, images: Sequence[Any], prompts: Sequence[str | None], continuations: Sequence[Sequence[str]]
    ) -> list[list[Likelihood]]:
        require_task(self.model, "understanding")
        return super().score(images, prompts, continuations)

    def settings(self, steps: int | None = None, guidance: float | None = None) -> None:
        """Another guidance than the folder's."""
        if steps is not None:
            raise UsageError(
                f"paint in {steps} steps", f"{type(self.model).__name__} paints a token a step", "leave the steps out"
            )
        if guidance is not None:
            self.sampling = replace(self.sampling, guidance=guidance)

    @property
    def sampling_settings(self) -> str:
        return str(self.sampling)

    @property
    def batch_size(self) -> int:
        """Pictures that are painted at once."""
        height, width = self.pictures.grid
        return max(1, min(LARGEST_BATCH, PAINTED_TOKENS // (2 * height * width)))

    # -- generation ------------------------------------------------------------------------------------------

    def generate(self, prompts: Sequence[str], seed: int, places: Sequence[int] | None = None) -> list[Picture]:
        """Pictures by the folder's generation settings."""
        if self.pictures.no_decoder is not None:
            self.pictures.decode(torch.empty(0), (0, 0))
        places = range(len(prompts)) if places is None else places
        found: list[Picture] = []
        for start in range(0, len(prompts), self.batch_size):
            part = slice(start, start + self.batch_size)
            codes = self.codes(prompts[part], [generator_of(seed, place) for place in places[part]])
            found += [self.pictures.to_pixels(one) for one in self._decode(codes)]
            passed("pictures", len(codes))
        return found

    def codes(
        self, prompts: Sequence[str], generators: Sequence[torch.Generator], padded: bool = True,
        at_time: Callable[[float], None] | None = None,
    ) -> Tensor:
        """(B, h * w) codes of the pictures, row by row."""
        require_task(self.model, "generation")
        rows = [self.pictures.prompt_ids(prompt) for prompt in prompts]
        return paint(
            self.pictures, [asked for asked, _ in rows], [without for _, without in rows], self.sampling, generators,
            padded=padded, at_time=at_time,
        )

    @torch.no_grad()
    def _decode(self, codes: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        return self.pictures.decode(codes, grid or self.pictures.grid)

    # -- calibration and counting ----------------------------------------------------------------------------

    @torch.no_grad()
    def feed(
        self,
        items: Sequence[UnderstandingItem | GenerationItem | TextSample],
        at_time: Callable[[float], None] | None = None,
    ) -> None:
        """Answers are fed as text after picture and question; prompts are painted to the end, in both branches."""
        painted = [item for item in items if isinstance(item, GenerationItem)]
        super().feed([item for item in items if not isinstance(item, GenerationItem)])
        for start in range(0, len(painted), self.batch_size):
            some = painted[start : start + self.batch_size]
            generators = [generator_of(item.seed, 0) for item in some]
            self.codes([item.prompt for item in some], generators, padded=False, at_time=at_time)
            passed("samples", len(some))

    @torch.no_grad()
    def pass_tokens(self, task: Task) -> int:
        """A picture and a short question; or a short prompt and the beginning of a picture, with and without guidance.

        The decoder, which runs once a picture and not once a token, is left out.
        """
        with self._run_on_shapes():
            return self._pass(task)[0]

    @torch.no_grad()
    def results(self, task: Task) -> list[Tensor]:
        """All that one pass of a task gives, the decoder's picture among it."""
        with self._run_on_shapes():
            found = [self._pass(task)[1]]
            if task == "generation":
                height, width = self.pictures.small_grid
                codes = torch.zeros(1, height * width, dtype=torch.long, device=self.device)
                found.append(self._decode(codes, (height, width)))
            return found

    @contextmanager
    def _run_on_shapes(self) -> Iterator[None]:
        """Inside, a model without values can be run; one with values as always."""
        with ExitStack() as shapes:
            if is_shapes_only(self.model):
                shapes.enter_context(buffers_on_meta(self.model))
                shapes.enter_context(batched_experts(self.model))
            yield

    def _pass(self, task: Task) -> tuple[int, Tensor]:
        """How many tokens went through, and the logits of the last one (of a picture: of its codes)."""
        embedded = self._embedded_question(1) if task == "understanding" else self._embedded_prompt_and_codes()
        # Without a cache positions are looked at, which shapes have none of.
        out = self.pictures.language_model(inputs_embeds=embedded, use_cache=True).last_hidden_state
        if task == "understanding":
            logits = self.model.lm_head(out[:, -1:])
        else:
            logits = self.pictures.code_logits(out[:, PROMPT_TOKENS - 1 :])
        return embedded.shape[:2].numel(), logits

    def _embedded_question(self, count: int, fill: float = 0.0) -> Tensor:
        """(B, P + t, H): pictures and questions of no particular words."""
        call = {name: self._to_device(value) for name, value in self.pictures.fixed_picture(fill).items()}
        seen = torch.cat([self.pictures.embeddings_of_picture(call) for _ in range(count)])
        words: Tensor = self.pictures.embed(torch.zeros(count, QUESTION_TOKENS, dtype=torch.long, device=self.device))
        return torch.cat([seen, words], dim=1)

    def _embedded_prompt_and_codes(self) -> Tensor:
        """(branches, t, H): a prompt and the first codes of a picture."""
        height, width = self.pictures.grid
        branches = 1 if self.sampling.guidance == 1 else 2
        words = self.pictures.embed(torch.zeros(branches, PROMPT_TOKENS, dtype=torch.long, device=self.device))
        code = torch.zeros(branches, dtype=torch.long, device=self.device)
        begun = range(1, min(PASS_TOKENS, height * width))
        codes = [self.pictures.embed_codes(code, step % width == 0) for step in begun]
        return torch.cat([words, *codes], dim=1)

    @torch.no_grad()
    def workload(self, task: Task) -> Work:
        """Understanding: read a picture and a question, decode eight tokens. Generation: begin a picture."""
        return self._timed_picture() if task == "generation" else self._timed_answer()

    def _timed_answer(self) -> Work:
        started = time.perf_counter()
        out = self.model(inputs_embeds=self._embedded_question(1), use_cache=True, logits_to_keep=1)
        self._synchronize()
        first = time.perf_counter()
        token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        for _ in range(NEW_TOKENS):
            out = self.model(input_ids=token, **carried_state(self.model, out), use_cache=True)
        self._synchronize()
        ended = time.perf_counter()
        measures = {"first_token_seconds": first - started, "tokens_per_second": NEW_TOKENS / (ended - first)}
        return Work(ended - started, measures)

    def _timed_picture(self) -> Work:
        height, width = self.pictures.grid
        steps = min(PASS_TOKENS, height * width)
        started = time.perf_counter()
        self._first_codes(steps, None)
        self._synchronize()
        seconds = time.perf_counter() - started
        return Work(seconds, {"image_tokens_per_second": steps / seconds})

    def _first_codes(self, steps: int, watch: Callable[[Tensor], None] | None) -> Tensor:
        """The first codes of a small picture of no particular words, (1, h * w)."""
        asked = ids_without_special_tokens(self.model, 1, PROMPT_TOKENS).tolist()
        without = [[asked[0][0]] * PROMPT_TOKENS]
        grid = self.pictures.small_grid if watch else None
        return paint(
            self.pictures, asked, without, self.sampling, [generator_of(0, 0)], grid=grid, steps=steps, watch=watch
        )

    @torch.no_grad()
    def probe(self) -> dict[str, Tensor]:
        """Two texts; a question about a ramp; the first codes of a picture, and that picture; for the tasks it does."""
        found = super().probe() if self.reads_texts else {}
        if self.reads_texts:
            call = {name: self._to_device(value) for name, value in self.pictures.fixed_picture().items()}
            seen = self.pictures.embeddings_of_picture(call)
            out = self.pictures.language_model(inputs_embeds=torch.cat([seen, seen[:, :3]], 1))
            found["question.hidden"] = out.last_hidden_state
        if "generation" not in self.calibrates:
            return found
        logits: list[Tensor] = []
        codes = self._first_codes(PROBE_CODES, logits.append)
        found["generation.logits"] = torch.cat(logits)
        if self.pictures.no_decoder is None:
            found["generation.image"] = self._decode(codes, self.pictures.small_grid)[0]
        return found
