"""Problems with the data that a recipe asks for: calibration, training and gates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from umcompress.data.calibration_file import CalibrationFile
from umcompress.data.sources import calibration_source, seeded, training_source
from umcompress.errors import PlanError, UsageError
from umcompress.extend.evaluation_base import Evaluation
from umcompress.extend.pass_base import Pass, TrainingPass
from umcompress.extend.users_code import call
from umcompress.models.source import Source
from umcompress.recipe.recipe import Calibration, Recipe, Step, Task
from umcompress.train.step import check_learning, check_trainable

if TYPE_CHECKING:
    from torch import nn

    from umcompress.models.runner import Runner

Problem = PlanError | UsageError


def data_problems(recipe: Recipe, source: Source, runner: Runner) -> list[tuple[str, Problem]]:
    """What is wrong with the data of a recipe: the steps or the evaluation that it stops, and why.

    runner: of a skeleton of the model.  The items are drawn; no weight is read.
    """
    evaluations = [seeded(evaluation, recipe.seed) for evaluation in recipe.evaluate]
    found: dict[str, tuple[list[str], Problem]] = {}
    for name, error in _problems(recipe, source, runner, evaluations):
        # Steps that share their calibration share what is wrong with it.
        found.setdefault(str(error), ([], error))[0].append(name)
    return [(", ".join(names), error) for names, error in found.values()]


def learning_problem(
    recipe: Recipe, planner: TrainingPass, names: Sequence[str], model: nn.Module, source: Source
) -> Problem | None:
    """Why `names` cannot be trained on the data of their step.  What is wrong with the data as such is left out.

    model: a skeleton, as the step finds it.
    """
    try:
        data = training_source(recipe, planner, [seeded(evaluation, recipe.seed) for evaluation in recipe.evaluate])
        check_trainable(planner, source, data)
    except (PlanError, UsageError):
        return None
    try:
        check_learning(planner, names, model, source, data)
    except (PlanError, UsageError) as error:
        return error
    return None


def _problems(
    recipe: Recipe, source: Source, runner: Runner, evaluations: Sequence[Evaluation]
) -> Iterator[tuple[str, Problem]]:
    for name, evaluation in zip(recipe.evaluation_names, evaluations, strict=True):
        try:
            call(evaluation, "check")
            _does_any(evaluation, runner)
            call(evaluation, "suits", runner)
        except (PlanError, UsageError) as error:
            yield f"evaluate {name}", error
    checked: set[Calibration] = set()
    for step in recipe.steps:
        planner = step.pass_
        wanted = recipe.calibration_of(planner)
        if (unscored := _gate_problem(step, evaluations, runner)) is not None:
            yield step.name, unscored
        try:
            if isinstance(planner, TrainingPass):
                check_trainable(planner, source, training_source(recipe, planner, evaluations))
            elif isinstance(planner, Pass) and call(planner, "needs") and wanted not in checked:
                _calibrates(wanted, calibration_source(recipe, wanted, evaluations), runner)
                checked.add(wanted)
        except (PlanError, UsageError) as error:
            yield step.name, error


def _gate_problem(step: Step, evaluations: Sequence[Evaluation], runner: Runner) -> UsageError | None:
    """What is wrong with a limit to a drop of a score that nothing gives."""
    scored = {task for evaluation in evaluations for task in evaluation.tasks if task in runner.tasks}
    asked: dict[Task, float | None] = {}
    if step.stop_if is not None:
        asked = {"understanding": step.stop_if.understanding_drop, "generation": step.stop_if.generation_drop}
    unscored = [task for task, limit in asked.items() if limit is not None and task not in scored]
    if not unscored:
        return None
    return UsageError(
        f"stop_if: {unscored[0]}_drop", f"no evaluation of the recipe scores {unscored[0]}",
        f"add an evaluation that does, or leave {unscored[0]}_drop out",
    )


def _calibrates(wanted: Calibration, giver: Evaluation, runner: Runner) -> None:
    """PlanError or UsageError where calibration items are missing."""
    can = runner.calibrates
    for task in wanted.tasks:
        if task not in can:
            raise PlanError(
                f"calibrate on {task}", f"{_kind(runner)} does {' and '.join(can)} here",
                f"set calibration: {{task: {can[0]}}}",
            )
        _gives(task, wanted, giver, runner)


def _gives(task: Task, wanted: Calibration, giver: Evaluation, runner: Runner) -> None:
    """PlanError or UsageError where items of a task are missing, or are not what the model reads."""
    if isinstance(giver, CalibrationFile):
        rows = giver.drawn(task, wanted.samples, wanted.seed)
        _can_read(str(giver.data), any("image" in row for row in rows), any("text" in row for row in rows), runner)
        return
    items = call(giver, "calibration_items", task, wanted.samples, wanted.seed)
    pictured = any(getattr(item, "image", None) is not None for item in items)
    _can_read(giver.name, pictured, any(hasattr(item, "text") for item in items), runner)


def _does_any(evaluation: Evaluation, runner: Runner) -> None:
    """UsageError where the model does nothing that the evaluation scores."""
    if evaluation.tasks and not set(evaluation.tasks) & set(runner.tasks):
        raise UsageError(
            f"the evaluation {evaluation.name}",
            f"it scores {' and '.join(evaluation.tasks)}; {_kind(runner)} does {' and '.join(runner.tasks)} here",
            "leave it out",
        )


def _can_read(name: str, pictured: bool, plain: bool, runner: Runner) -> None:
    """PlanError where calibration items have pictures or text only, which the model is not run on."""
    asked = f"calibrate {_kind(runner)} on {name}"
    if pictured and not runner.reads_pictures:
        raise PlanError(
            asked, "it shows pictures, and the model is run on text here",
            "calibration: {data: FILE} of JSON lines with `text`, or evaluate: [perplexity: {data: FILE}]",
        )
    if not plain:
        return
    if not runner.reads_texts:
        raise PlanError(
            asked, "it gives plain text, which the model is not run on here",
            "calibration: {data: FILE} of JSON lines with `image` and `question`, or with `prompt`",
        )
    # Opened, so that a tokenizer that is missing or broken is told of before anything is run.
    _ = runner.tokenizer


def _kind(runner: Runner) -> str:
    return type(runner.model).__name__
