"""A training step of a recipe: builds teacher, data and checkpoint folder, and runs the training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from umcompress.data.training_file import TrainingFile
from umcompress.documents.base import Task
from umcompress.documents.expert_load import Experts
from umcompress.documents.plan import Plan
from umcompress.documents.training_options import TrainingSummary
from umcompress.errors import ModelError, PlanError
from umcompress.extend.evaluation_base import Evaluation
from umcompress.extend.pass_base import TrainingPass
from umcompress.models.family import Family
from umcompress.models.items import GenerationItem, TrainingItem
from umcompress.models.runner import Runner
from umcompress.models.source import Source
from umcompress.rewrite.nn.experts import SparseFeedForward
from umcompress.train.engine import TrainableModel, TrainingJob, train
from umcompress.train.expert_load import expert_load
from umcompress.train.progress import CURVE, Curve

# Items of each task that the load of experts is watched on.
WATCHED_ITEMS = 16


def check_trainable(planner: TrainingPass, source: Source, data: Evaluation) -> None:
    """Check, before hours are spent, that the model can be trained and that there is data."""
    if type(source.family).trainer is Family.trainer:
        source.family.trainer(nn.Module(), source.folder)
    data.check()
    if type(data).training_items is Evaluation.training_items:
        data.training_items("generation", 1, planner.seed)


def check_learning(
    planner: TrainingPass, names: Sequence[str], model: nn.Module, source: Source, data: Evaluation
) -> None:
    """PlanError or UsageError where `names` cannot learn from this data.  `model`: a skeleton, as it will be then."""
    trainer = source.trainer(model)
    tasks: Iterable[Task]
    try:
        tasks = _shares(planner, names, model, source.runner(model), trainer.tasks)
    except ModelError:
        # It cannot be run without values: which tasks reach what learns is known when it is.
        tasks = planner.tasks or trainer.tasks
    items: list[TrainingItem] = []
    for task in _offered(planner, data, tasks):
        items += data.examples(task) if isinstance(data, TrainingFile) else data.training_items(task, 1, planner.seed)
    trainer.check(items)
    if not planner.losses.distills and any(isinstance(item, GenerationItem) for item in items):
        raise PlanError(
            f"{planner.name}: train on prompts without pictures", "only the unpruned model says what is right there",
            "leave losses.distill_output above 0, or give pictures with their prompts",
        )
    for name in names:
        if reason := trainer.blocked(name, items):
            raise PlanError(
                f"{planner.name}: train {name}", reason, "leave it out of `parameters`, or give data that reach it"
            )


def run_training(
    planner: TrainingPass, names: Sequence[str], model: nn.Module, source: Source, data: Evaluation, folder: Path,
    say: Callable[[str], None], title: str,
) -> dict[str, Tensor]:  # fmt: skip
    """The new values of `names`.  `model` is the student; the teacher is the source's own model."""
    student = _subject(model, source)
    shards = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    teacher = _subject(source.load(), source) if planner.losses.distills or shards else None
    if teacher is not None:
        teacher.model.requires_grad_(False)
    shares = _shares(planner, names, model, source.runner(model), student.trainer.tasks)
    shares = {task: shares[task] for task in _offered(planner, data, shares)}
    say(f"{title}: training {_many(names, model)} on {' and '.join(shares)}, {planner.steps} steps")
    first = _from_block(planner, names, student, teacher, source, say, title)
    job = TrainingJob(
        options=planner, names=names, shares=shares, draw=data.training_items, student=student, teacher=teacher,
        folder=folder, say=say, title=title, from_block=first,
    )  # fmt: skip
    return train(job)


def sharded(model: nn.Module) -> bool:
    """Whether a training left the model's parameters spread over processes: it must be loaded again."""
    return any(hasattr(tensor, "device_mesh") for tensor in model.parameters())


def summary(folder: Path, plan: Plan, model: nn.Module) -> TrainingSummary | None:
    """Summarise the training whose curve lies in `folder`, if there was one."""
    curve = Curve(folder / CURVE)
    if not curve.file.is_file() or not plan.tensor_names():
        return None
    curve.read()
    count = max(1, len(curve.rows) // 10)
    seconds = sum(row["seconds"] for row in curve.rows) / len(curve.rows)
    return TrainingSummary(
        steps=len(curve.rows), parameters=sum(model.get_parameter(name).numel() for name in plan.tensor_names()),
        seconds_per_step=round(seconds, 4), first=_means(curve.rows[:count]), last=_means(curve.rows[-count:]),
    )  # fmt: skip


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    names = sorted({name for row in rows for name in row["losses"]})
    return {name: sum(row["losses"].get(name, 0.0) for row in rows) / len(rows) for name in names}


def feed_experts(
    model: nn.Module, family: Family, runner: Runner, evaluations: Sequence[Evaluation], seed: int
) -> Experts | None:
    """The load of the experts over a few calibration items of each task, from the first evaluation that has some."""
    if not any(isinstance(module, SparseFeedForward) for module in model.modules()):
        return None
    sources = [e for e in evaluations if type(e).calibration_items is not Evaluation.calibration_items]
    if not sources:
        return None
    tasks = [task for task in runner.tasks if task in sources[0].tasks]
    items = {task: sources[0].calibration_items(task, WATCHED_ITEMS, seed) for task in tasks}
    return expert_load(model, family, runner, items)


def _subject(model: nn.Module, source: Source) -> TrainableModel:
    stack = model.get_submodule(source.family.stacks(model)[source.family.main_stack])
    assert isinstance(stack, nn.ModuleList)
    return TrainableModel(model, source.trainer(model), list(stack))


def _many(names: Sequence[str], model: nn.Module) -> str:
    count = sum(model.get_parameter(name).numel() for name in names)
    return f"{count:,} parameters in {len(names)} tensors"


def _from_block(
    planner: TrainingPass, names: Sequence[str], student: TrainableModel, teacher: TrainableModel | None,
    source: Source, say: Callable[[str], None], title: str,
) -> int | None:  # fmt: skip
    """The first block whose output what learns can change; None where blocks do not correspond."""
    if teacher is None or not planner.losses.distill_blocks:
        return None
    if len(student.blocks) != len(teacher.blocks):
        say(
            f"{title}: {len(student.blocks)} of {len(teacher.blocks)} blocks are left, so that block outputs do not "
            "correspond: only the final output is distilled"
        )
        return None
    prefix = f"{source.family.stacks(student.model)[source.family.main_stack]}."
    places = [int(n.removeprefix(prefix).split(".")[0]) if n.startswith(prefix) else 0 for n in names]
    return min(places)


def _offered(planner: TrainingPass, data: Evaluation, tasks: Iterable[Task]) -> Iterable[Task]:
    """Those of `tasks` for which there is data, or all where the recipe names some.  PlanError where there is none."""
    if planner.tasks is not None:
        return tasks
    found, refusals = [], []
    for task in tasks:
        try:
            if not isinstance(data, TrainingFile):
                data.training_items(task, 1, planner.seed)
            elif not data.offers(task):
                continue
            found.append(task)
        except PlanError as error:
            refusals.append(error)
    if not found and refusals:
        raise refusals[0]
    return found or tasks


def _shares(
    planner: TrainingPass, names: Sequence[str], model: nn.Module, runner: Runner, can: Sequence[Task]
) -> Mapping[Task, float]:
    if planner.tasks is not None:
        if missing := [task for task in planner.tasks if task not in can]:
            raise PlanError(
                f"{planner.name}: tasks {', '.join(planner.tasks)}", f"this model cannot be trained on {missing[0]}",
                f"leave it out: {', '.join(can)}",
            )  # fmt: skip
        return dict(planner.tasks)
    found = [task for task in runner.tasks if task in can and _reaches(task, names, model, runner)]
    if not found:
        raise PlanError(
            f"{planner.name}: train {names[0]}{' and others' if len(names) > 1 else ''}", "no task reaches them",
            "name what a task runs through, or the tasks with `tasks`",
        )  # fmt: skip
    return dict.fromkeys(found, 1.0)


@torch.no_grad()
def _reaches(task: Task, names: Sequence[str], model: nn.Module, runner: Runner) -> bool:
    """Whether tokens of `task` go through a module that holds one of the parameters."""
    with _watched(names, model) as reached:
        runner.pass_tokens(task)
    return bool(reached)


@contextmanager
def _watched(names: Sequence[str], model: nn.Module) -> Iterator[set[str]]:
    reached: set[str] = set()

    def note(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[object, ...]) -> None:
            if any(isinstance(value, Tensor) and value.numel() for value in inputs):
                reached.add(path)

        return hook

    # Of a feed-forward with experts only the whole is called: a parent that gets tokens counts as well.
    paths = {name.rpartition(".")[0] for name in names}
    homes = {path: module for path, module in model.named_modules() if path in _with_routed_parents(paths, model)}
    hooks = [module.register_forward_pre_hook(note(path)) for path, module in homes.items()]
    try:
        yield reached
    finally:
        for hook in hooks:
            hook.remove()


def _with_routed_parents(paths: set[str], model: nn.Module) -> set[str]:
    routed = [path for path, module in model.named_modules() if isinstance(module, SparseFeedForward)]
    return paths | {path for path in routed if any(inner.startswith(f"{path}.") for inner in paths)}
