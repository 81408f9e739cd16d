"""The losses of a batch: the task's own, distillation from the teacher, balance of the experts.

Every loss is a sum over this batch's rows divided by the rows of the whole step, so that parts and processes add up
to what one big batch gives.  Shapes: R rows, H hidden, T tokens, E experts, k chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from umcompress.documents.training_options import LossWeights
from umcompress.models.trainer import Trainer, TrainingBatch
from umcompress.rewrite.nn.experts import SparseFeedForward
from umcompress.train.batches import StepTotals

# How much of the load that the balance loss goes by is that of the steps before the last.
LOAD_DECAY = 0.9
_TINY = 1e-12


class BlockOutputs:
    """Records the outputs of blocks: `heard[i]` are the (R, H) tensors of block i, one for each call."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self.heard: dict[int, list[tuple[Tensor, ...]]] = {}
        self._on = False
        self._hooks = [block.register_forward_hook(self._hook(index)) for index, block in enumerate(blocks)]

    def _hook(self, index: int):  # type: ignore[no-untyped-def]
        def hear(_: nn.Module, __: object, output: object) -> None:
            if self._on:
                found = output if isinstance(output, tuple) else (output,)
                tensors = (t for t in found if isinstance(t, Tensor) and t.is_floating_point() and t.ndim > 1)
                rows = tuple(tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors)
                self.heard.setdefault(index, []).append(rows)

        return hear

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record outputs within this context, starting from nothing."""
        self.heard = {}
        self._on = True
        try:
            yield
        finally:
            self._on = False

    def take(self, batch: TrainingBatch) -> dict[int, tuple[Tensor, ...]]:
        """Return the recorded tokens of `batch` and drop them here: they must not outlive their step."""
        heard, self.heard = self.heard, {}
        return {
            index: tuple(_tokens(parts, batch) for parts in zip(*calls, strict=True)) for index, calls in heard.items()
        }

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()


def _tokens(parts: Sequence[Tensor], batch: TrainingBatch) -> Tensor:
    """The rows of all calls without padding.  Blocks with other rows than the main stack (a vision tower) keep all."""
    rows = parts[0] if len(parts) == 1 else torch.cat(list(parts))
    if batch.kept is None or len(batch.kept) != len(rows):
        return rows
    return rows[batch.kept.to(rows.device)]


class Routers:
    """Observes split feed-forwards: how often each expert is chosen, and the load-balancing loss.

    `load[path]` (E,) is each expert's share of the work, a running mean; it is part of a checkpoint.
    """

    def __init__(self, modules: dict[str, SparseFeedForward], device: torch.device) -> None:
        self.modules = modules
        experts = {path: module.shape.experts for path, module in modules.items()}
        self.load = {path: torch.full((count,), 1 / count, device=device) for path, count in experts.items()}
        self.counts = {path: torch.zeros(count, device=device) for path, count in experts.items()}
        self._seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._inputs: dict[str, Tensor] = {}
        self._on = False
        self._hooks = []
        for path, module in modules.items():
            module.watcher = self._watcher(path)
            self._hooks.append(module.register_forward_pre_hook(self._pre_hook(path)))

    def _pre_hook(self, path: str):  # type: ignore[no-untyped-def]
        def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._inputs[path] = inputs[0].detach().reshape(-1, inputs[0].shape[-1])

        return keep

    def _watcher(self, path: str):  # type: ignore[no-untyped-def]
        def watch(chosen: Tensor, logits: Tensor) -> None:
            module, x = self.modules[path], self._inputs.pop(path)
            if not len(chosen):
                return
            scores = logits.float()
            if module.shape.selector:
                # What the selector predicts has a unit of its own: probabilities are taken in its spreads.
                frozen = module.selector(x).detach().float()
                scores = (frozen + scores) / frozen.std().clamp_min(_TINY)
            # Computed also when a block runs again going back, which must do the same as the first time.
            probability = scores.softmax(-1)
            if self._on:
                self._seen.setdefault(path, []).append((probability, chosen))

        return watch

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record one forward, but not what gradient checkpointing recomputes."""
        self._seen = {}
        self._on = True
        try:
            yield
        finally:
            self._on = False

    def balance(self, batch: TrainingBatch, totals: StepTotals) -> Tensor | None:
        """E * sum of load times mean probability, mean over the feed-forwards: 1 where all is even.

        Counts what was chosen, too.
        """
        seen, self._seen = self._seen, {}
        terms = []
        for path, calls in seen.items():
            probability, chosen = (_tokens(parts, batch) for parts in zip(*calls, strict=True))
            count = self.modules[path].shape.experts
            self.counts[path] += (chosen.reshape(-1, 1) == torch.arange(count, device=chosen.device)).sum(0)
            mean = probability.sum(0) / _whole(len(probability), batch, totals)
            terms.append(count * (self.load[path] * mean).sum())
        return torch.stack(terms).sum() / len(self.modules) if terms else None

    def end_step(self) -> None:
        """Update the running mean of the load with the step's counts over all processes."""
        for path, counts in self.counts.items():
            if float(counts.sum()) > 0:
                self.load[path].lerp_(counts / counts.sum(), 1 - LOAD_DECAY)

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        for module in self.modules.values():
            module.watcher = None


def _whole(tokens: int, batch: TrainingBatch, totals: StepTotals) -> float:
    """The tokens of a stream in the whole step, given those in this batch."""
    for mine, whole in zip(batch.block_rows, totals.block_rows, strict=True):
        if mine == tokens:
            return whole
    return tokens * sum(totals.block_rows) / max(1, sum(batch.block_rows))


def _rows_of_step(place: int, rows: Tensor, batch: TrainingBatch, totals: StepTotals) -> float:
    """The rows in the whole step of the tensor that a block returns in this place.

    A last block may return fewer tensors than the others: of those the rows are looked up by their number.
    """
    if batch.block_rows[place] == len(rows):
        return totals.block_rows[place]
    return _whole(len(rows), batch, totals)


@dataclass
class Teacher:
    """The unpruned model as a teacher: its outputs for a batch, and the variance of its blocks' outputs."""

    trainer: Trainer
    blocks: BlockOutputs
    variances: dict[int, tuple[float, ...]]

    @torch.no_grad()
    def measure(self, batches: Sequence[TrainingBatch]) -> None:
        """Variance of each block's outputs about their mean row: the unit of block distillation."""
        sums: dict[tuple[int, int], list[Tensor]] = {}
        for batch in batches:
            with self.blocks.listening():
                self.trainer.forward(batch)
            for index, tensors in self.blocks.take(batch).items():
                for place, rows in enumerate(tensors):
                    wide = rows.double()
                    new = [torch.tensor(float(len(rows))), wide.sum(0).cpu(), (wide**2).sum(0).cpu()]
                    old = sums.get((index, place))
                    sums[index, place] = new if old is None else [a + b for a, b in zip(old, new, strict=True)]
        self.variances = {}
        for (index, _), (count, first, second) in sorted(sums.items()):
            spread = (second / count.clamp_min(1) - (first / count.clamp_min(1)) ** 2).mean()
            self.variances[index] = (*self.variances.get(index, ()), max(float(spread), _TINY))


class Student(nn.Module):
    """The model that is trained, as a module whose forward returns all losses (which accelerate wraps in turn)."""

    def __init__(
        self, model: nn.Module, trainer: Trainer, teacher: Teacher | None, blocks: BlockOutputs | None,
        routers: Routers, weights: LossWeights, autocast: torch.dtype | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model = model
        self._no_split_modules: list[str] = []
        self.trainer, self.teacher, self.blocks, self.routers = trainer, teacher, blocks, routers
        self.weights, self.autocast = weights, autocast

    def forward(self, batch: TrainingBatch, totals: StepTotals) -> dict[str, Tensor]:
        """The weighted sum as `loss`, and its parts, detached and unweighted."""
        device = next(self.model.parameters()).device.type
        with torch.autocast(device, self.autocast, enabled=self.autocast is not None):
            outputs, taught = self._taught(batch)
            with self.routers.listening(), self._blocks_listening():
                done = self.trainer.forward(batch)
        parts = {name: loss.float().sum() / totals.rows[name] for name, loss in done.losses.items()}
        weight = dict.fromkeys(parts, self.weights.task)
        for name, teacher in outputs.items():
            parts[name] = summed_distance(name, done.outputs[name].float(), teacher.float()) / totals.rows[name]
            weight[name] = self.weights.distill_output
        if self.blocks is not None and taught:
            parts["blocks"] = self._blocks(taught, batch, totals)
            weight["blocks"] = self.weights.distill_blocks
        if (balance := self.routers.balance(batch, totals)) is not None and self.weights.balance:
            parts["balance"] = balance
            weight["balance"] = self.weights.balance
        loss = torch.stack([weight[name] * part for name, part in parts.items() if weight[name]]).sum()
        if not loss.requires_grad:
            # Nothing of this batch goes through what learns, as texts go past a vision tower: no gradient, not none.
            loss = loss + 0 * torch.stack([p.sum() for p in self.model.parameters() if p.requires_grad]).sum()
        return {"loss": loss} | {name: part.detach() for name, part in parts.items()}

    @torch.no_grad()
    def _taught(self, batch: TrainingBatch) -> tuple[dict[str, Tensor], dict[int, tuple[Tensor, ...]]]:
        if self.teacher is None:
            return {}, {}
        with self.teacher.blocks.listening():
            done = self.teacher.trainer.forward(batch)
        heard = self.teacher.blocks.take(batch)
        return dict(done.outputs) if self.weights.distill_output else {}, heard

    @contextmanager
    def _blocks_listening(self) -> Iterator[None]:
        if self.blocks is None:
            yield
            return
        with self.blocks.listening():
            yield

    def _blocks(self, taught: dict[int, tuple[Tensor, ...]], batch: TrainingBatch, totals: StepTotals) -> Tensor:
        """Mean over the blocks of the squared error over the teacher's variance; a block's tensors add up."""
        assert self.blocks is not None and self.teacher is not None
        terms = []
        for index, tensors in self.blocks.take(batch).items():
            spreads = self.teacher.variances[index]
            for place, (mine, wanted, spread) in enumerate(zip(tensors, taught[index], spreads, strict=True)):
                error = (mine.float() - wanted.float()).square().sum() / mine.shape[-1]
                terms.append(error / (spread * max(_rows_of_step(place, mine, batch, totals), 1)))
        return torch.stack(terms).sum() / len(self.teacher.variances)


def summed_distance(name: str, mine: Tensor, wanted: Tensor) -> Tensor:
    """Summed over rows: divergence of distributions for logits, in nats, else the mean squared error of a row."""
    if name.endswith("logits"):
        return functional.kl_div(mine.log_softmax(-1), wanted.log_softmax(-1), reduction="sum", log_target=True)
    return (mine - wanted).square().mean(-1).sum()
