"""Run a pipeline: pictures of prompts, answers of its text encoder, calibration on both."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from umcompress.documents.base import Task
from umcompress.errors import UncountedError, UsageError
from umcompress.graph.watched import is_watched
from umcompress.models.hf.ask.text_runner import TransformersRunner
from umcompress.models.hf.load.run_on_shapes import OnShapes
from umcompress.models.hf.load.skeleton import is_shapes_only
from umcompress.models.hf.paint.sampling import generator_of
from umcompress.models.items import GenerationItem, Picture
from umcompress.models.pipelines.painting import Painter, PaintingSettings, Stop, small, to_pixels
from umcompress.models.pipelines.parts import PipelineModel
from umcompress.models.pipelines.prediction import first_step
from umcompress.models.pipelines.reading import reader
from umcompress.models.pipelines.stacks import PAINTS, READS
from umcompress.models.runner import Likelihood, Runner, Work
from umcompress.progress import passed
from umcompress.rewrite.nn.absent import kept_task, require_task

if TYPE_CHECKING:
    from umcompress.models.family import Family
    from umcompress.models.pipelines.trainer import PipelineTrainer

PROMPT = "a picture"
# Of what is timed, counted and compared: few steps of a small picture.
STEPS = 2
COUNTED_SIDE = 4


class PipelineRunner(Runner):
    """Generation by the pipeline's own call; understanding where its text encoder continues text."""

    def __init__(self, model: PipelineModel, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.painter = Painter(model, folder)
        self.sampling = PaintingSettings()
        self.tasks: tuple[Task, ...] = ("generation",) if self.reader is None else ("understanding", "generation")

    @cached_property
    def reader(self) -> TransformersRunner | None:
        """Runs the text encoder, where it continues text."""
        only_paints = kept_task(self.model) == "generation"
        return None if only_paints else reader(getattr(self.model, READS, None), self.folder)

    @property
    def sampling_settings(self) -> str:
        return str(self.sampling)

    def settings(
        self, steps: int | None = None, guidance: float | None = None, height: int | None = None,
        width: int | None = None, negative_prompt: str | None = None,
    ) -> None:
        """Other settings than the pipeline's own; what is None stays as it is."""
        given: dict[str, Any] = {
            "steps": steps, "guidance": guidance, "height": height, "width": width, "negative_prompt": negative_prompt,
        }
        self.sampling = replace(self.sampling, **{name: one for name, one in given.items() if one is not None})

    def trainer(self, family: Family) -> PipelineTrainer:
        from umcompress.models.pipelines.trainer import PipelineTrainer

        return PipelineTrainer(self)

    # -- understanding ---------------------------------------------------------------------------------------

    def answer(self, images: Sequence[Any], questions: Sequence[str], max_new_tokens: int = 16) -> list[str]:
        return self._reading("answer questions").answer(images, questions, max_new_tokens)

    def score(
        self, images: Sequence[Any], prompts: Sequence[str | None], continuations: Sequence[Sequence[str]]
    ) -> list[list[Likelihood]]:
        return self._reading("score continuations").score(images, prompts, continuations)

    def logits(self, ids: Tensor) -> Tensor:
        """(B, T) ids -> (B, T, V)."""
        return self._reading("score text").logits(ids)

    @property
    def tokenizer(self) -> Any:
        """That of the text encoder."""
        return self._reading("read text").tokenizer

    @property
    def max_text_tokens(self) -> int | None:
        return None if self.reader is None else self.reader.max_text_tokens

    @property
    def reads_texts(self) -> bool:
        return self.reader is not None

    @property
    def generates_text(self) -> bool:
        return self.reader is not None

    @property
    def reads_pictures(self) -> bool:
        return self.reader is not None and self.reader.reads_pictures

    def pass_text(self) -> int:
        return self._reading("count").pass_text()

    def _reading(self, what: str) -> TransformersRunner:
        require_task(self.model, "understanding")
        if self.reader is None:
            raise UsageError(what, "the text encoder of this pipeline continues no text", "leave the task out")
        return self.reader

    # -- generation --------------------------------------------------------------------------------------------

    def generate(self, prompts: Sequence[str], seed: int, places: Sequence[int] | None = None) -> list[Picture]:
        """One at a time: what shares a batch would change the last bits."""
        numbered = zip(prompts, range(len(prompts)) if places is None else places, strict=True)
        found: list[Picture] = []
        for prompt, place in numbered:
            found.append(to_pixels(self.painter.call(prompt, generator_of(seed, place), self.sampling)))
            passed("pictures")
        return found

    # -- calibration -------------------------------------------------------------------------------------------

    def feed(self, items: Sequence[Any], at_time: Callable[[float], None] | None = None) -> None:
        """Prompts are denoised to the end; where nothing that paints is looked at, they are only read.

        Texts and questions go through the text encoder alone.
        """
        painted = [item for item in items if isinstance(item, GenerationItem)]
        if read := [item for item in items if not isinstance(item, GenerationItem)]:
            self._reading("calibrate on texts and questions").feed(read)
        wanted = any(is_watched(name) for name, _ in self.model.named_children() if not name.startswith(READS))
        for item in painted:
            heard = _Times(at_time, stop=not wanted and at_time is None)
            with self.painter.before_denoiser(heard), suppress(Stop):
                self.painter.call(item.prompt, generator_of(item.seed, 0), self.sampling, output="latent")
            passed("samples")

    def portions(self, items: Sequence[Any]) -> list[list[Any]]:
        """Each prompt by itself, what is read as the text encoder's runner has it."""
        painted = [[item] for item in items if isinstance(item, GenerationItem)]
        read = [item for item in items if not isinstance(item, GenerationItem)]
        return painted + (self._reading("calibrate on texts and questions").portions(read) if read else [])

    # -- counting and timing -----------------------------------------------------------------------------------

    @property
    def measured(self) -> PaintingSettings:
        """What is counted and timed: the picture of the settings where they have a size, else a small one."""
        if self.sampling.height is not None or self.sampling.width is not None:
            return replace(self.sampling, steps=STEPS)
        return small(self.sampling, COUNTED_SIDE * self.painter.smallest, STEPS)

    @torch.no_grad()
    def pass_tokens(self, task: Task) -> int:
        """A question; or a prompt and one step of a picture: how many rows went into the blocks that denoise.

        The prompt is read once and the decoder runs once a picture, so neither is counted in their rows.
        UncountedError where a skeleton cannot be run.
        """
        if task == "understanding":
            return self._reading("count").pass_tokens(task)
        rows = _Rows()
        with ExitStack() as stack:
            for path in self._first_blocks():
                hook = self.model.get_submodule(path).register_forward_pre_hook(rows, with_kwargs=True)
                stack.callback(hook.remove)
            if is_shapes_only(self.model):
                stack.enter_context(OnShapes())
            try:
                first_step(self.painter, PROMPT, generator_of(0, 0), self.measured)
            except (NotImplementedError, RuntimeError) as error:
                found = (str(error).splitlines() or [type(error).__name__])[0]
                raise UncountedError(f"count the work of {self.model.index.kind} without values", found) from error
        return rows.count

    def _first_blocks(self) -> list[str]:
        """The first block of what denoises."""
        return [f"{path}.0" for name, path in self.model.stacks.items() if name == PAINTS]

    @torch.no_grad()
    def workload(self, task: Task) -> Work:
        """Understanding as the text encoder's runner has it. Generation: a picture in two steps."""
        if task == "understanding":
            return self._reading("time").workload(task)
        started = time.perf_counter()
        self.painter.call(PROMPT, generator_of(0, 0), self.measured)
        seconds = time.perf_counter() - started
        return Work(seconds, {"image_seconds": seconds})

    @torch.no_grad()
    def probe(self) -> dict[str, Tensor]:
        """What the text encoder gives on fixed inputs; a small picture in two steps, as latents and as pixels."""
        found = {} if self.reader is None else self.reader.probe()
        # As the pipeline does by itself, whatever the settings are: a fresh process knows of none.
        settings = small(PaintingSettings(), self.painter.smallest, STEPS)
        found["generation.latents"] = self.painter.call(PROMPT, generator_of(0, 0), settings, output="latent")
        found["generation.image"] = torch.from_numpy(self.painter.call(PROMPT, generator_of(0, 0), settings).copy())
        return found


class _Times:
    """Tells `at_time` each new time at which a picture is denoised; or ends the call at the first one."""

    def __init__(self, at_time: Callable[[float], None] | None, stop: bool) -> None:
        self.at_time, self.stop, self.last = at_time, stop, -1.0

    def __call__(self, given: Mapping[str, Any]) -> None:
        if self.stop:
            raise Stop
        value = given.get("timestep")
        if self.at_time is None or not isinstance(value, Tensor):
            return
        now = float(value.flatten()[0])
        now = now / 1000 if now > 1 else now
        if now != self.last:
            self.last = now
            self.at_time(now)


class _Rows:
    """Counts the rows of all streams that go into a block."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, _: object, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        streams = [value for name, value in kwargs.items() if name.endswith("hidden_states")] or list(args[:1])
        self.count += sum(value.shape[:-1].numel() for value in streams if isinstance(value, Tensor))
