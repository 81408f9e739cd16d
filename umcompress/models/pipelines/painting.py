"""A pipeline object of diffusers around the parts of a model, and how it is called.

Every call gets an object of its own, with a scheduler of its own: objects keep their place in a denoising, and out of
core several denoise at once. Parts with weights are shared.
"""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from umcompress.errors import ModelError, UsageError
from umcompress.models.hf.load.skeleton import CONFIG_ERRORS
from umcompress.models.pipelines.parts import PipelineModel
from umcompress.models.pipelines.stacks import PAINTS

# What a negative prompt is where none is given: pipelines that guide by one say so, and leave it out otherwise.
NEGATIVE = " "
# The scale of pipelines that guide by a negative prompt, and may have another number that goes into what denoises.
TRUE_SCALE = "true_cfg_scale"


@dataclass(frozen=True)
class PaintingSettings:
    """How pictures are painted; None: as the pipeline does by itself."""

    steps: int | None = None
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    negative_prompt: str = NEGATIVE


class Stop(BaseException):
    """Ends a call of a pipeline where nothing that follows is wanted."""


class Painter:
    """Makes and calls pipeline objects around the parts of a model."""

    def __init__(self, model: PipelineModel, folder: Path) -> None:
        self.model, self.folder = model, folder

    @cached_property
    def kind(self) -> Any:
        """The class of the pipeline."""
        import diffusers

        found = getattr(diffusers, self.model.index.kind, None)
        if found is None:
            raise ModelError(
                f"run the pipeline in {self.folder}",
                f"diffusers {diffusers.__version__} has no class {self.model.index.kind}",
                "install a version of diffusers that has it",
            )
        return found

    @cached_property
    def _rest(self) -> dict[str, Any]:
        """Tokenizers, schedulers and processors, opened when they are first needed; and settings of the index."""
        content = self.model.index.content
        weighted = {part.name for part in self.model.index.parts}
        found: dict[str, Any] = {}
        takes = inspect.signature(self.kind.__init__).parameters
        for name, value in content.items():
            if name in weighted or name.startswith("_") or name not in takes:
                continue
            found[name] = self._opened(name, *value) if isinstance(value, list) and len(value) == 2 else value
        return found

    def _opened(self, name: str, library: str | None, cls: str | None) -> Any:
        if library is None or cls is None:
            return None
        try:
            kind: Any = getattr(importlib.import_module(library), cls)
            return kind.from_pretrained(self.folder / name)
        except CONFIG_ERRORS as error:
            lines = str(error).splitlines() or [type(error).__name__]
            raise ModelError(
                f"open {name} of the pipeline in {self.folder}", f"{cls}: {lines[0][:200]}",
                "copy the files of the pipeline into its folder",
            ) from error

    def pipeline(self) -> Any:
        """A new pipeline object."""
        rest = {name: copy.deepcopy(one) if name == "scheduler" else one for name, one in self._rest.items()}
        made = self.kind(**{part.name: self.model.of(part) for part in self.model.index.parts}, **rest)
        made.set_progress_bar_config(disable=True)
        return made

    @property
    def smallest(self) -> int:
        """A side in pixels that is small and that every model of this kind takes."""
        factor = int(getattr(self.pipeline(), "vae_scale_factor", 8))
        return 4 * factor

    def call(
        self, prompt: str, generator: torch.Generator, settings: PaintingSettings, output: str = "np"
    ) -> Any:
        """What a pipeline makes of a prompt: a picture (h, w, 3) of numbers from 0 to 1, or with "latent" its latents.

        UsageError for settings that the pipeline refuses.
        """
        options = self.options(settings) | {"prompt": prompt, "generator": generator, "output_type": output}
        found = self.invoked(self.pipeline(), options)
        return found[0] if output == "np" else found

    def invoked(self, pipeline: Any, options: Mapping[str, Any], gradients: bool = False) -> Any:
        """What a call of a pipeline object makes.  Options that it does not take are left out.

        UsageError for options that it refuses.  gradients: its own code keeps none; then what lies below it is called.
        """
        takes = inspect.signature(self.kind.__call__).parameters
        call: Any = self.kind.__call__
        call = getattr(call, "__wrapped__", call) if gradients else call
        try:
            with nullcontext() if gradients else torch.no_grad():
                made = call(pipeline, **{name: value for name, value in options.items() if name in takes})
        except (ValueError, TypeError) as error:
            lines = str(error).splitlines() or [type(error).__name__]
            raise UsageError(
                f"paint with {self.model.index.kind}", lines[0][:300],
                "look at `sampling` of the recipe, and at what the pipeline takes",
            ) from error
        return made.images if hasattr(made, "images") else made[0]

    @property
    def guidance_name(self) -> str | None:
        """What the pipeline calls the scale by which it guides; None where it has none."""
        takes = inspect.signature(self.kind.__call__).parameters
        return next((name for name in (TRUE_SCALE, "guidance_scale") if name in takes), None)

    @property
    def takes_guidance(self) -> bool:
        """Whether the scale goes into what denoises as a number, and no second branch is computed."""
        parts = (child for name, child in self.model.named_children() if name.startswith(PAINTS))
        embedded = any(getattr(getattr(part, "config", None), "guidance_embeds", False) for part in parts)
        return embedded and self.guidance_name != TRUE_SCALE

    @cached_property
    def unguided_scale(self) -> float:
        """The scale at which no second branch is computed: mostly 1, and 0 for pipelines that add the scale to one."""
        made = self.pipeline()
        for scale in (1.0, 0.0):
            made._guidance_scale = scale
            if not getattr(made, "do_classifier_free_guidance", False):
                return scale
        return 1.0

    def options(self, settings: PaintingSettings) -> dict[str, Any]:
        """The settings under the names that the pipeline has for them."""
        takes = inspect.signature(self.kind.__call__).parameters
        options: dict[str, Any] = {
            "num_inference_steps": settings.steps, "height": settings.height, "width": settings.width,
            self.guidance_name or "guidance_scale": settings.guidance,
        }
        options = {name: value for name, value in options.items() if value is not None}
        # Without guidance it is not read, and pipelines say so each time.
        if TRUE_SCALE in takes and (settings.guidance is None or settings.guidance > 1):
            options["negative_prompt"] = settings.negative_prompt
        if "num_frames" in takes:
            options["num_frames"] = 1
        return options

    @contextmanager
    def before_denoiser(self, heard: Callable[[Mapping[str, Any]], None]) -> Iterator[None]:
        """Inside, `heard` is called with the arguments of each call of what denoises, by name, before it runs."""

        def hear(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            heard(inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments)

        hooks = [
            child.register_forward_pre_hook(hear, with_kwargs=True)
            for name, child in self.model.named_children() if name.startswith(PAINTS)
        ]  # fmt: skip
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def small(settings: PaintingSettings, side: int, steps: int) -> PaintingSettings:
    """The same guidance, of a small picture in few steps."""
    return replace(settings, height=side, width=side, steps=steps)


def to_pixels(picture: Any) -> Any:
    """(h, w, 3) numbers from 0 to 1 as bytes; of a film its first picture."""
    values = np.asarray(picture)
    values = values[0] if values.ndim == 4 else values
    return (values.clip(0, 1) * 255).round().astype(np.uint8)
