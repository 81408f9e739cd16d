"""What an evaluated model was made from: the run that wrote it, if its folder lies in one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umcompress.documents.file_names import REPORT, RUN
from umcompress.documents.report import Report, StepReport, read_report, step_report
from umcompress.errors import UmcompressError
from umcompress.extend.evaluation_base import Evaluation
from umcompress.extend.registry import find_evaluation
from umcompress.models.registry import resolve_folder
from umcompress.recipe.places import seen_from_here, with_places


@dataclass(frozen=True)
class Origin:
    """The report of the run that wrote a model."""

    run: Path
    report: Report

    def evaluations(self, seed: int | None, limit: int | None) -> list[Evaluation]:
        """Those of the run, on its own items but for what is asked for; without those that need the unpruned model."""
        found = []
        # Reports of earlier versions have paths as they were seen from the folder of that command.
        told = self.report.recipe_folder
        folder = None if told is None else self.run / told
        for entry in (self.report.recipe or {}).get("evaluate", ()):
            for name, options in entry.items():
                kind = find_evaluation(name, folder or self.run)
                here = with_places(kind, options, lambda path, of, at: seen_from_here(path, of, folder))
                asked = {"seed": seed, "limit": limit}
                changed = {key: value for key, value in asked.items() if value is not None and key in kind.model_fields}
                evaluation = kind.model_validate_json(json.dumps({**here, **changed}))
                if not evaluation.compares or getattr(evaluation, "reference", None) is not None:
                    found.append(evaluation)
        return found

    def in_words(self) -> str:
        """What the model is."""
        result, base = self.report.result, self.report.baseline
        names = [step.pass_ or step.name for step in lineage(self.report.steps, result)[1:]]
        after, before = result.parameters.total, base.parameters.total
        return (
            f"made from {self.report.model} by {', '.join(names) or 'no step'} (run {self.run}): {after:,} of "
            f"{before:,} parameters, {after / before:.1%}"
        )

    def beside(self, step: StepReport, settings: dict[str, Any], seed: int) -> tuple[StepReport, StepReport | None]:
        """(the step with its changes from the run's baseline, that baseline); unchanged and None where the run scored
        other items."""
        shared = {name: of_it for name, of_it in settings.items() if name in self.report.evaluations}
        same = seed == self.report.seed and shared and all(
            _plain(of_it) == _plain(self.report.evaluations[name]) for name, of_it in shared.items()
        )  # fmt: skip
        if not same:
            return step, None
        base = self.report.baseline
        return step_report(step, base).model_copy(update={"flags": (), "previous": {}}), base


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Where data lies says nothing of what it is."""
    return {key: value for key, value in settings.items() if key != "data"}


def lineage(steps: Sequence[StepReport], last: StepReport) -> list[StepReport]:
    """The steps that a model has been through, from the baseline on."""
    names = [step.name for step in steps]
    place, found = names.index(last.name), list[StepReport]()
    while place >= 0:
        step = steps[place]
        found.append(step)
        place = -1 if place == 0 else names.index(step.after) if step.after in names else place - 1
    return found[::-1]


def origin(model: str) -> Origin | None:
    """The run whose `model/` this is; None where it is no such folder, or the run's report cannot be read."""
    folder = resolve_folder(model)
    run = folder.parent
    if folder.name != "model" or not (run / RUN).is_file() or not (run / REPORT).is_file():
        return None
    try:
        return Origin(run, read_report(run))
    except UmcompressError:
        return None
