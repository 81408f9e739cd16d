"""Find what provides calibration and training items: the user's file, or an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from umcompress.data.calibration_file import CalibrationFile
from umcompress.data.training_file import TrainingFile
from umcompress.errors import PlanError
from umcompress.extend.evaluation_base import Evaluation
from umcompress.extend.pass_base import TrainingPass
from umcompress.extend.registry import find_evaluation
from umcompress.extend.users_code import call
from umcompress.recipe.recipe import Calibration, Recipe


def seeded(evaluation: Any, seed: int) -> Evaluation:
    """The evaluation with the recipe's seed, unless the recipe gives it one of its own."""
    assert isinstance(evaluation, Evaluation)
    if "seed" in type(evaluation).model_fields and "seed" not in evaluation.model_fields_set:
        return evaluation.model_copy(update={"seed": seed})
    return evaluation


def calibration_source(recipe: Recipe, wanted: Calibration, evaluations: Sequence[Evaluation]) -> Evaluation:
    """What provides calibration items: the user's file, the named evaluation, else the recipe's first."""
    if wanted.data is not None:
        return CalibrationFile(data=wanted.data)
    if wanted.source is not None:
        place = recipe.evaluation_named(wanted.source)
        return find_evaluation(wanted.source, Path())() if place is None else evaluations[place]
    if evaluations:
        return evaluations[0]
    raise PlanError(
        "calibration data", "the recipe names no evaluation and no calibration source",
        "add `evaluate: [...]`, or `calibration: {source: NAME}`, or `calibration: {data: FILE}`",
    )


def calibration_items(
    recipe: Recipe, wanted: Calibration, evaluations: Sequence[Evaluation], say: Callable[[str], None]
) -> list[Any]:
    """The items that statistics are measured on; tells which of a user's file are scored as well."""
    source = calibration_source(recipe, wanted, evaluations)
    if isinstance(source, CalibrationFile):
        for task in wanted.tasks:
            for line in source.overlaps((task, wanted.samples, wanted.seed), evaluations):
                say(line)
    return [
        item for task in wanted.tasks for item in call(source, "calibration_items", task, wanted.samples, wanted.seed)
    ]


def training_source(recipe: Recipe, planner: TrainingPass, evaluations: Sequence[Evaluation]) -> Evaluation:
    """What provides training items: the step's file, the evaluation that it names, else the recipe's first."""
    if planner.data is not None:
        return TrainingFile(data=planner.data)
    return calibration_source(recipe, Calibration(source=planner.source), evaluations)
