"""Run a training in one process, in several, or sharded, as `accelerate launch` configures it.

The weights change in place on the model that is given; what a step keeps are the returned tensors, the running mean
if there is one.  All random numbers follow from the seed and the step, so a training that was killed and goes on from
its checkpoint gives the same weights bit for bit in one process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from umcompress import processes
from umcompress.documents.base import Task
from umcompress.documents.training_options import TrainingOptions
from umcompress.errors import CheckError, UsageError
from umcompress.models.trainer import Trainer
from umcompress.progress import Progress
from umcompress.rewrite.nn.experts import SparseFeedForward
from umcompress.train.batches import Draw, Feed, StepTotals
from umcompress.train.losses import BlockOutputs, Routers, Student, Teacher
from umcompress.train.progress import CURVE, Curve, shown_losses
from umcompress.train.schedule import average_decay, learning_rate, peak_rate
from umcompress.train.state import MOMENTS, State, full_tensor

BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class TrainableModel:
    """A model with its trainer, and its blocks in order."""

    model: nn.Module
    trainer: Trainer
    blocks: Sequence[nn.Module]


@dataclass
class TrainingJob:
    """One training.  `blocks`: which of the blocks are compared with the teacher's, None: none."""

    options: TrainingOptions
    names: Sequence[str]
    shares: Mapping[Task, float]
    draw: Draw
    student: TrainableModel
    teacher: TrainableModel | None
    folder: Path
    say: Callable[[str], None]
    title: str = "training"
    from_block: int | None = 0
    curve: Curve = field(init=False)

    def __post_init__(self) -> None:
        self.curve = Curve(self.folder / CURVE)


def train(job: TrainingJob) -> dict[str, Tensor]:
    """The new values of the parameters that learn, by name, of their old dtype and on the CPU; in every process."""
    model = job.student.model
    dtypes = {name: tensor.dtype for name, tensor in model.named_parameters() if name in set(job.names)}
    with _learning(model, job.names), _attention_kernel(model):
        running = _TrainingRun(job)
        try:
            running.run()
            values = running.values()
        finally:
            running.close()
    return {name: value.to("cpu", dtypes[name], copy=True) for name, value in values.items()}


class _TrainingRun:
    """The objects of a training while it runs."""

    def __init__(self, job: TrainingJob) -> None:
        self.job, self.options = job, job.options
        self.accelerator = _accelerator(job.student.model)
        self.device = next(job.student.model.parameters()).device
        # The teacher is never sharded, so that it can also encode pictures outside of a forward.
        encoder = (job.teacher or job.student).trainer
        self.feed = Feed(job.options, job.shares, job.draw, encoder, processes.rank(), processes.world())
        self.routers = Routers(_sparse(job.student.model), self.device)
        self.blocks: BlockOutputs | None = None
        self.teacher = self._teacher()
        self._checkpointed = _checkpointing(job.student.blocks) if job.options.gradient_checkpointing else []
        student = Student(
            job.student.model, job.student.trainer, self.teacher, self.blocks, self.routers, job.options.losses,
            _autocast(job.options, job.student.model),
        )
        # What is sharded one by one, where a launch shards: accelerate looks for it under this name.
        student._no_split_modules = sorted({type(block).__name__ for block in job.student.blocks})
        learn = [tensor for tensor in student.parameters() if tensor.requires_grad]
        self.rate = peak_rate(job.options, max(tensor.shape[-1] for tensor in learn))
        optimizer = torch.optim.AdamW(learn, lr=self.rate, betas=BETAS, weight_decay=0.0)
        self.student, self.optimizer = self.accelerator.prepare(student, optimizer)
        self.learned = self._learned()
        averaged = self.learned if job.options.ema else {}
        self.average = {name: tensor.detach().clone() for name, tensor in averaged.items()}

    def _teacher(self) -> Teacher | None:
        job = self.job
        if job.teacher is None or not job.options.losses.distills:
            return None
        compared: Sequence[nn.Module] = ()
        if job.options.losses.distill_blocks and job.from_block is not None:
            self.blocks = BlockOutputs(job.student.blocks[job.from_block :])
            compared = job.teacher.blocks[job.from_block :]
        teacher = Teacher(job.teacher.trainer, BlockOutputs(compared), {})
        if compared:
            teacher.measure(self.feed.everything(0))
        return teacher

    def _learned(self) -> dict[str, Tensor]:
        """The parameters that learn under the model's own names, as the optimizer holds them."""
        inner = self.accelerator.unwrap_model(self.student)
        found = dict(inner.model.named_parameters())
        if missing := [name for name in self.job.names if name not in found]:
            raise CheckError("train the parameters of the plan", f"the model has no {', '.join(missing[:5])}")
        return {name: found[name] for name in self.job.names}

    def _state(self) -> State:
        """What a checkpoint holds.  Optimizer moments exist from the first step on and are created as zeros before."""
        moments = self.optimizer.state
        for tensor in self.learned.values():
            if not moments[tensor]:
                zeros = {name: torch.zeros_like(tensor, memory_format=torch.preserve_format) for name in MOMENTS[1:]}
                moments[tensor] = {"step": torch.tensor(0.0)} | zeros
        kept = {name: {path: moments[tensor][name] for path, tensor in self.learned.items()} for name in MOMENTS}
        return State({"parameter": self.learned, "average": self.average, "load": self.routers.load, **kept})

    # -- running ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        main = processes.rank() == 0
        started = self._state().load(self.job.folder)
        if started:
            self.job.say(f"{self.job.title}: resumed after step {started} of {self.options.steps}")
        if main:
            self.job.curve.resume(started)
        with Progress(self.job.title, "steps", self.options.steps, started, self.job.say) as display:
            for step in range(started, self.options.steps):
                row = self._step(step)
                if main:
                    self.job.curve.add(row)
                display.advance(1, shown_losses(row["losses"], row["load"]))
                if (step + 1) % self.options.checkpoint_every == 0 or step + 1 == self.options.steps:
                    self._state().save(self.job.folder, step + 1, main)

    def _step(self, step: int) -> dict[str, Any]:
        began = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.options, self.rate)
        batches = self.feed.step(step)
        totals = StepTotals.merge(processes.gather(StepTotals.of(batches)))
        losses: dict[str, float] = {}
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.student):
                parts = self.student(batch, totals)
                # Gradients are averaged over processes; the losses are parts of a sum.
                self.accelerator.backward(parts["loss"] * processes.world())
            for name, part in parts.items():
                losses[name] = losses.get(name, 0.0) + float(part.detach())
        norm = self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._follow(step)
        return self._row(step, losses, norm, time.perf_counter() - began)

    def _clip(self) -> float:
        longest = float("inf") if self.options.clip is None else self.options.clip
        norm = self.accelerator.clip_grad_norm_(list(self.learned.values()), longest)
        length = float(full_tensor(norm)) if isinstance(norm, Tensor) else 0.0
        if length != length or length == float("inf"):
            raise CheckError(
                f"{self.job.title}: a gradient", "it is not a finite number", "lower learning_rate, or leave bf16 out"
            )
        return length

    @torch.no_grad()
    def _follow(self, step: int) -> None:
        weight = 1 - average_decay(step, self.options.ema)
        for name, average in self.average.items():
            average.lerp_(self.learned[name], weight)

    def _row(self, step: int, losses: dict[str, float], norm: float, seconds: float) -> dict[str, Any]:
        """The step as a line of the curve: sums over all processes."""
        counts = {path: found.tolist() for path, found in self.routers.counts.items()}
        everyone = processes.gather((losses, counts))
        names = sorted({name for part, _ in everyone for name in part})
        summed = {name: sum(part.get(name, 0.0) for part, _ in everyone) for name in names}
        shares = []
        for path, found in self.routers.counts.items():
            every = torch.tensor([theirs[path] for _, theirs in everyone]).sum(0)
            found.copy_(every)
            if float(every.sum()) > 0:
                shares.append(every / every.sum() * self.routers.modules[path].shape.active)
        self.routers.end_step()
        for found in self.routers.counts.values():
            found.zero_()
        load = None if not shares else (min(float(s.min()) for s in shares), max(float(s.max()) for s in shares))
        return {
            "step": step, "losses": summed, "rate": learning_rate(step, self.options, self.rate), "norm": norm,
            "load": load, "seconds": round(seconds, 4),
        }  # fmt: skip

    def values(self) -> dict[str, Tensor]:
        kept = self.average or self.learned
        return {name: full_tensor(tensor) for name, tensor in kept.items()}

    def close(self) -> None:
        """Remove all hooks."""
        self.routers.remove()
        if self.blocks is not None:
            self.blocks.remove()
        if self.teacher is not None:
            self.teacher.blocks.remove()
        for block in self._checkpointed:
            del block.forward


def _accelerator(model: nn.Module) -> Any:
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, DistributedType

    device = next(model.parameters()).device
    # A batch of one task leaves the parts of the other without gradients.
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    accelerator = Accelerator(mixed_precision="no", cpu=device.type == "cpu", kwargs_handlers=[ddp])
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise UsageError(
            "train sharded with FSDP version 1", "its flat parameters cannot hold frozen and learning ones apart",
            "use version 2: accelerate launch --use_fsdp --fsdp_version 2 ...",
        )  # fmt: skip
    return accelerator


def _sparse(model: nn.Module) -> dict[str, SparseFeedForward]:
    return {path: module for path, module in model.named_modules() if isinstance(module, SparseFeedForward)}


def _autocast(options: TrainingOptions, model: nn.Module) -> torch.dtype | None:
    """bfloat16 where asked for, and where the frozen weights are bfloat16 while those that learn are float32."""
    asked = options.bf16 if options.bf16 is not None else next(model.parameters()).is_cuda
    lower = any(tensor.dtype == torch.bfloat16 for tensor in model.parameters() if not tensor.requires_grad)
    return torch.bfloat16 if asked or lower else None


def _checkpointing(blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """Gradient checkpointing: each block recomputes its activations in the backward pass."""
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return list(blocks)


@contextmanager
def _learning(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Within, only `names` require gradients, as float32 copies; afterwards everything is restored but their values."""
    wanted = set(names)
    before = {name: tensor.requires_grad for name, tensor in model.named_parameters()}
    for name, tensor in model.named_parameters():
        tensor.requires_grad_(name in wanted)
        if name in wanted:
            # Weights may be mapped from a file that must not change.
            tensor.data = tensor.data.float().clone()
    try:
        yield
    finally:
        for name, tensor in model.named_parameters():
            tensor.requires_grad_(before.get(name, tensor.requires_grad))
            tensor.grad = None


@contextmanager
def _attention_kernel(model: nn.Module) -> Iterator[None]:
    """The attention kernel to train with: on the CPU the fused one has a slow backward pass at short lengths."""
    if next(model.parameters()).device.type != "cpu":
        yield
        return
    with sdpa_kernel(SDPBackend.MATH):
        yield
