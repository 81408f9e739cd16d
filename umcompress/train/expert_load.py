"""Measure how often each expert is chosen, by task and denoising time, over a few calibration items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from umcompress.documents.base import Task
from umcompress.documents.expert_load import ExpertLoad, Experts
from umcompress.models.family import Family
from umcompress.models.runner import Runner
from umcompress.rewrite.nn.experts import SparseFeedForward

TIME_BINS = 4


class _Counts:
    """Chosen experts and tokens of one feed-forward, by denoising time; None stands for no time."""

    def __init__(self, experts: int) -> None:
        self.experts = experts
        self.chosen: dict[float | None, Tensor] = {}
        self.tokens: dict[float | None, int] = {}

    def add(self, chosen: Tensor, time: float | None) -> None:
        if not len(chosen):
            return
        numbers = torch.arange(self.experts, device=chosen.device)
        found = (chosen.reshape(-1, 1) == numbers).sum(0)
        self.chosen[time] = self.chosen[time] + found if time in self.chosen else found
        self.tokens[time] = self.tokens.get(time, 0) + len(chosen)

    def shares(self, times: Sequence[float | None]) -> tuple[float, ...]:
        """Of the tokens at these times; empty where there were none."""
        there = [time for time in times if time in self.chosen]
        if not there:
            return ()
        found = torch.stack([self.chosen[time] for time in there]).sum(0).double()
        return tuple((found / sum(self.tokens[time] for time in there)).tolist())


def expert_load(model: nn.Module, family: Family, runner: Runner, items: dict[Task, list[Any]]) -> Experts | None:
    """Run the model on the items and count chosen experts.  None where no feed-forward is split."""
    modules = {path: module for path, module in model.named_modules() if isinstance(module, SparseFeedForward)}
    if not modules:
        return None
    counted = {task: _watch(modules, runner, task, found) for task, found in items.items() if found}
    seen = {time for counts in counted.get("generation", {}).values() for time in counts.chosen if time is not None}
    bins = _bins(sorted(seen, reverse=True))
    sites = [
        _site(path, module, family, {task: counts[path] for task, counts in counted.items()}, bins)
        for path, module in modules.items()
    ]
    return Experts(times=tuple((part[0], part[-1]) for part in bins), sites=tuple(sites))


def _watch(
    modules: dict[str, SparseFeedForward], runner: Runner, task: Task, items: list[Any]
) -> dict[str, _Counts]:
    counts = {path: _Counts(module.shape.experts) for path, module in modules.items()}
    now: list[float | None] = [None]

    def watcher(path: str) -> Any:
        return lambda chosen, _: counts[path].add(chosen, now[0])

    before = {path: module.watcher for path, module in modules.items()}
    for path, module in modules.items():
        module.watcher = watcher(path)
    try:
        if task == "generation":
            runner.feed(items, at_time=lambda time: now.__setitem__(0, time))
        else:
            runner.feed(items)
    finally:
        for path, module in modules.items():
            module.watcher = before[path]
    return counts


def _bins(times: Sequence[float]) -> list[Sequence[float]]:
    """The sampler's times, from noise to picture, in TIME_BINS runs of about equally many."""
    count = min(TIME_BINS, len(times))
    ends = [round(len(times) * part / max(count, 1)) for part in range(count + 1)]
    return [times[ends[part] : ends[part + 1]] for part in range(count)]


def _site(
    path: str, module: SparseFeedForward, family: Family, counts: dict[Task, _Counts], bins: list[Sequence[float]]
) -> ExpertLoad:
    numbers = [int(part) for part in path.split(".") if part.isdecimal()]
    shares: dict[Task, tuple[float, ...]] = {task: found.shares(list(found.chosen)) for task, found in counts.items()}
    painted = counts.get("generation")
    by_time = [painted.shares(part) for part in bins] if painted is not None else []
    return ExpertLoad(
        site=path, index=numbers[0] if numbers else 0, component=family.component_of(path),
        active=module.shape.active, tokens={task: sum(found.tokens.values()) for task, found in counts.items()},
        by_task={task: found for task, found in shares.items() if found},
        by_time=tuple(by_time) if all(by_time) else (),
    )  # fmt: skip
