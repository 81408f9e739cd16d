"""A tiny BAGEL whose generation feed-forwards are split, and trainings of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from umcompress.data.training_file import TrainingFile
from umcompress.documents.base import Task
from umcompress.documents.plan import Plan, SetTensors, SplitExperts
from umcompress.evals.scenes.evaluation import Scenes
from umcompress.extend import Statistics
from umcompress.extend.pass_base import TrainingPass
from umcompress.graph.model_graph import trace_model
from umcompress.models.items import TrainingItem
from umcompress.models.source import Source, open_source
from umcompress.passes.adapt import Adapt
from umcompress.rewrite.apply import rewrite
from umcompress.train.progress import CURVE, Curve
from umcompress.train.step import run_training

EXPERTS, ACTIVE = 8, 4


def split(source: Source, component: str | None = "generation", selector: bool = False, seed: int = 0) -> nn.Module:
    """The model with every feed-forward of a component (None: of all) split; routers and selectors are random."""
    model = source.load()
    sites = trace_model(model, source.family).feed_forwards(component=component)
    draw = torch.Generator().manual_seed(seed)
    edits: list[Any] = []
    values: dict[str, Tensor] = {}
    for site in sites:
        each = site.width // EXPERTS
        experts = tuple(tuple(range(start, start + each)) for start in range(0, each * EXPERTS, each))
        edits.append(SplitExperts(site=site.path, experts=experts, active=ACTIVE, selector=selector))
        (hidden,) = model.get_parameter(f"{site.producers[0]}.weight").shape[1:]
        kinds: dict[str, tuple[int, ...]] = {"gate.weight": (EXPERTS, hidden)}
        if selector:
            kinds |= {"selector.weight": (EXPERTS, hidden), "selector.bias": (EXPERTS,)}
        values |= {f"{site.path}.{n}": torch.randn(s, generator=draw) * 0.05 for n, s in kinds.items()}
    edits.append(SetTensors(names=tuple(values)))
    return rewrite(model, source.family, [Plan(pass_name="split", edits=tuple(edits))], [values])


def names_of(planner: TrainingPass, model: nn.Module, source: Source) -> tuple[str, ...]:
    return planner.plan(trace_model(model, source.family), Statistics()).plan.tensor_names()


def run(
    planner: TrainingPass, folder: Path, out: Path, model: nn.Module | None = None, said: list[str] | None = None
) -> tuple[dict[str, Tensor], Curve]:
    """Train (by default a split model of `folder`) on scenes; the values and the curve."""
    source = open_source(str(folder))
    model = split(source) if model is None else model
    say = (lambda _: None) if said is None else said.append
    values = run_training(planner, names_of(planner, model, source), model, source, Scenes(), out, say, "training")
    curve = Curve(out / CURVE)
    curve.read()
    return values, curve


def quick(**options: Any) -> Adapt:
    """Few small steps, on the CPU without bfloat16."""
    return Adapt(**{"steps": 4, "batch_size": 4, "warm_up": 0, "learning_rate": 1e-3} | options)


class Killed(TrainingFile):
    """Stops when the items of the fourth step are asked for: after those of the teacher's measure and three steps."""

    asked: Path

    def training_items(self, task: Task, count: int, seed: int) -> list[TrainingItem]:
        with self.asked.open("a") as stream:
            stream.write(f"{task}\n")
        if self.asked.read_text().split().count(task) > 4:
            raise KeyboardInterrupt
        return super().training_items(task, count, seed)
