"""What a pipeline gives its scheduler for latents at a time, computed by the pipeline's own code, with gradients.

So the order of arguments, the unit of time and the sign of the velocity are the pipeline's, whichever it is.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from umcompress.models.pipelines.canvas import cannot_train, unguided
from umcompress.models.pipelines.painting import Painter, PaintingSettings, Stop


def predicted(
    painter: Painter, prompt: str, latents: Tensor, time: Tensor, settings: PaintingSettings
) -> Tensor:
    """(1, *shape) latents at a time of the scheduler's -> (1, *shape), of the branch with the prompt alone."""
    pipeline, calls = painter.pipeline(), _Calls()
    options = unguided(painter, settings) | {"prompt": prompt, "latents": latents, "output_type": "latent"}

    def first(output: Tensor, *_: Any, **__: Any) -> Any:
        raise Stop(output)

    with painter.before_denoiser(calls), _one_time(pipeline.scheduler, time), _stepping(pipeline.scheduler, first):
        try:
            painter.invoked(pipeline, options, gradients=True)
        except Stop as stop:
            found: Tensor = stop.args[0]
            if calls.count != 1:
                raise cannot_train(painter, "it guides by a second branch that cannot be left out") from None
            if found.shape == latents.shape:
                return found
    raise cannot_train(painter, "it does not step from latents to latents")


def visited(
    painter: Painter, prompt: str, generator: torch.Generator, settings: PaintingSettings, wanted: Collection[int]
) -> list[tuple[Tensor, Tensor]]:
    """Latents (1, *shape) and times at which a pipeline arrives by itself, in these of its steps (from 0).

    Guided, as it paints.
    """
    pipeline, found, count = painter.pipeline(), list[tuple[Tensor, Tensor]](), [0]
    original = pipeline.scheduler.step

    def step(output: Tensor, time: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        if count[0] in wanted:
            found.append((sample.detach().clone(), torch.as_tensor(time).detach().clone()))
            if len(found) == len(wanted):
                raise Stop
        count[0] += 1
        return original(output, time, sample, *args, **kwargs)

    options = painter.options(settings) | {"prompt": prompt, "generator": generator, "output_type": "latent"}
    with _stepping(pipeline.scheduler, step), suppress(Stop):
        painter.invoked(pipeline, options)
    if len(found) < len(wanted):
        found_ones = f"it takes {count[0]} steps, not {max(wanted) + 1}"
        raise cannot_train(painter, found_ones, "give it pictures with their prompts")
    return found


def first_step(painter: Painter, prompt: str, generator: torch.Generator, settings: PaintingSettings) -> None:
    """Read a prompt and denoise once, guided as it is; the scheduler takes no step, so shapes will do."""
    pipeline = painter.pipeline()

    def end(*_: Any, **__: Any) -> Any:
        raise Stop

    options = painter.options(settings) | {"prompt": prompt, "generator": generator, "output_type": "latent"}
    with _stepping(pipeline.scheduler, end), suppress(Stop):
        painter.invoked(pipeline, options)


def rows_of_block(
    painter: Painter, prompt: str, latents: Tensor, time: Tensor, settings: PaintingSettings, block: Any, reading: Any
) -> tuple[int, ...]:
    """Rows of each tensor that a block which denoises returns for a prompt; at last the rows that are read.

    reading: a block of the encoder of text, or None.
    """
    read: list[int] = []

    def seen(_: Any, __: Any, output: Any) -> None:
        raise _Seen(_rows(output))

    hooks = [block.register_forward_hook(seen)]
    if reading is not None:
        hooks.append(reading.register_forward_hook(lambda _, __, output: read.append(sum(_rows(output)[:1]))))
    try:
        with torch.no_grad():
            predicted(painter, prompt, latents, time, settings)
    except _Seen as seen_rows:
        return (*seen_rows.args[0], sum(read))
    finally:
        for hook in hooks:
            hook.remove()
    raise cannot_train(painter, "its first block is not called")


class _Seen(BaseException):
    """Ends a call at the first block, with the rows of its outputs."""


def _rows(output: Any) -> tuple[int, ...]:
    found = output if isinstance(output, tuple) else (output,)
    tensors = [one for one in found if isinstance(one, Tensor) and one.is_floating_point() and one.ndim > 1]
    return tuple(one.shape[:-1].numel() for one in tensors)


class _Calls:
    """Counts calls of what denoises, and the pictures in them: guidance by a second branch is none of one branch."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, given: Mapping[str, Any]) -> None:
        states = next(iter(given.values()), None)
        self.count += len(states) if isinstance(states, Tensor | list) else 1


@contextmanager
def _one_time(scheduler: Any, time: Tensor) -> Iterator[None]:
    """Inside, a schedule has this one time."""
    original = scheduler.set_timesteps

    @functools.wraps(original)
    def only(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        scheduler.timesteps = time.to(scheduler.timesteps).reshape(1)

    scheduler.set_timesteps = only
    try:
        yield
    finally:
        del scheduler.set_timesteps


@contextmanager
def _stepping(scheduler: Any, step: Any) -> Iterator[None]:
    """Inside, the scheduler steps so."""
    scheduler.step = functools.wraps(scheduler.step)(step)
    try:
        yield
    finally:
        del scheduler.step
