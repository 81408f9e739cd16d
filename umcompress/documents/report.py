"""The report of a run: everything that is ever printed about it, as one document.

Renderers format and never compute: a change, a flag or an interval that a table shows is a field here, filled
in by `step_report`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, ValidationError

from umcompress.documents.atomic import write_text_atomic
from umcompress.documents.base import TASKS, Component, Document, Task
from umcompress.documents.expert_load import Experts
from umcompress.documents.file_names import REPORT
from umcompress.documents.files import read_text
from umcompress.documents.gate import Gate
from umcompress.documents.plan import Declined
from umcompress.documents.removed import SiteResult
from umcompress.documents.scores import (
    Change,
    Score,
    change,
    number_changes,
    printed_change,
    worsening,
)
from umcompress.documents.training_options import TrainingSummary
from umcompress.documents.unfinished_run import unfinished
from umcompress.errors import UsageError

_NUMBERS = re.compile(r"\[\n\s+-?\d[-+.e\d]*(?:,\n\s+-?\d[-+.e\d]*)*\n\s+\]")
# Two timings of the same model differ by this much; less is not called faster.
SPEED_NOISE = 0.02


class Size(Document):
    """Parameters or bytes: in all, those a task touches, and those of each component."""

    total: NonNegativeInt
    active: dict[Task, NonNegativeInt] = {}
    by_component: dict[Component, NonNegativeInt] = {}


class Speed(Document):
    """How fast a task runs. `ratio` to the unpruned model in the same process: above 1 is faster.

    measures: what was timed, unit in the name: `first_token_seconds`, `tokens_per_second`, `image_seconds`.
    noise: the ratio's relative spread over the repetitions, where known.
    """

    ratio: PositiveFloat
    measures: dict[str, NonNegativeFloat] = {}
    noise: NonNegativeFloat | None = None


class GateResult(Document):
    """One limit of a step's `stop_if`: `drop` is baseline minus now; of a loss, now minus baseline.

    low, high: its 95 % interval.  Not passed where even `low` is above the limit.
    """

    task: Task
    limit: float
    drop: float
    low: float | None = None
    high: float | None = None
    passed: bool


class Stopped(Document):
    """Why a run ended before its last step. The step named here was undone."""

    step: str
    reason: str


class StepReport(Document):
    """The model after one step. The first is the baseline: `pass` is null.

    scores: of each task the first evaluation's; `evaluations` has those of all, by evaluation.
    after: the step whose model it started from, where that is not the row above.
    changes: scores against the baseline; previous: against the step that it started from.
    evaluation_changes: of every evaluation against the baseline, of what is printed: perplexity, not its inverse.
    number_changes: of its further numbers, as far as they are made of the same items.
    sites: what was removed where, and what was measured there; declined: the sites left alone, and why.
    flags: `no_speed:TASK`, a step that cut a task's work and made it no faster.
    samples: a picture of generated samples, relative to the run's folder.
    kept: tasks of which the step changed no weight: their scores and speed are those of the step that is named.
    experts: how tokens fall on experts, where a feed-forward is split; training: what a training step came to.
    """

    name: str
    after: str | None = None
    pass_: str | None = Field(default=None, validation_alias="pass", serialization_alias="pass")
    options: dict[str, Any] = {}
    scores: dict[Task, Score] = {}
    evaluations: dict[str, dict[Task, Score]] = {}
    changes: dict[Task, Change] = {}
    previous: dict[Task, Change] = {}
    evaluation_changes: dict[str, dict[Task, Change]] = {}
    number_changes: dict[str, dict[Task, dict[str, Change]]] = {}
    parameters: Size
    bytes: Size
    macs_per_token: dict[Task, NonNegativeInt] = {}
    speed: dict[Task, Speed] = {}
    seconds: NonNegativeFloat = 0.0
    edits: NonNegativeInt = 0
    declined: tuple[Declined, ...] = ()
    sites: tuple[SiteResult, ...] = ()
    gates: tuple[GateResult, ...] = ()
    stopped: bool = False
    kept: dict[Task, str] = {}
    flags: tuple[str, ...] = ()
    samples: str | None = None
    experts: Experts | None = None
    training: TrainingSummary | None = None


class CheckpointResult(Document):
    """What was written to `model/`, and whether it computes the same to the last bit.

    checked: how that was found and how long it took, where parts were compared; "": all of it ran in a fresh process.
    """

    path: str
    loads_with: Literal["umcompress", "transformers", "diffusers"] = "umcompress"
    # Python files in the folder that loading runs, so that it needs trust_remote_code=True.
    own_code: tuple[str, ...] = ()
    parameters: NonNegativeInt
    bytes: NonNegativeInt
    reload_equal: bool | None = None
    checked: str = ""
    note: str = ""


class Report(Document):
    """One run, or one evaluation of a model (then the baseline is the only step).

    evaluations: settings of each evaluation by name, all defaults written out; two reports compare only where
    these and the seed agree.
    recipe_folder: seen from the run's folder, where the recipe lay: paths in it are seen from there.
    beside: of an evaluated model that umcompress made, the baseline of its run.
    written: of alternatives, the step whose model is written; null: the last that was not undone.
    """

    # 2: losses, whose items are kept.  3: items of all scores, and what each step removed.  A report of an earlier
    # version is read as it is.
    format: Literal[1, 2, 3] = 3
    model: str
    recipe: dict[str, Any] | None = None
    recipe_name: str | None = None
    recipe_folder: str | None = None
    fingerprint: str | None = None
    evaluations: dict[str, dict[str, Any]] = {}
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    hardware: str | None = None
    versions: dict[str, str] = {}
    commit: str | None = None
    command: tuple[str, ...] = ()
    created: str | None = None
    provenance: dict[str, Any] = {}
    steps: tuple[StepReport, ...] = Field(min_length=1)
    beside: StepReport | None = None
    written: str | None = None
    stopped: Stopped | None = None
    checkpoint: CheckpointResult | None = None
    notes: tuple[str, ...] = ()

    @property
    def baseline(self) -> StepReport:
        return self.steps[0]

    @property
    def result(self) -> StepReport:
        """The model that is written: that of the step named so, or of the last that was not undone."""
        done = [step for step in self.steps if not step.stopped]
        return next((step for step in done if step.name == self.written), done[-1])

    def dumps(self) -> str:
        """The text of report.json."""
        text = json.dumps(self.json_values(), indent=2, ensure_ascii=False)
        # Lists of numbers (items, scores of channels) on one line.  Within strings there are no line ends.
        return _NUMBERS.sub(lambda found: " ".join(found[0].split()), text) + "\n"


def report_schema() -> dict[str, Any]:
    """JSON Schema of report.json as it is written."""
    schema = Report.model_json_schema(by_alias=True, mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "umcompress report"}


def step_report(
    step: StepReport, baseline: StepReport | None = None, previous: StepReport | None = None
) -> StepReport:
    """`step` with its changes and flags filled in. Without a baseline it is the baseline itself."""
    if baseline is None:
        return step
    above = previous or baseline
    return step.model_copy(
        update={
            "changes": _changes(step, baseline),
            "previous": _changes(step, above),
            "evaluation_changes": evaluation_changes(step, baseline),
            "number_changes": _number_changes(step, baseline),
            "flags": (*step.flags, *_no_speed(step, above)),
        }
    )


def _changes(step: StepReport, other: StepReport) -> dict[Task, Change]:
    both = [task for task in TASKS if task in step.scores and task in other.scores]
    return {task: change(step.scores[task], other.scores[task]) for task in both}


def evaluation_changes(step: StepReport, other: StepReport) -> dict[str, dict[Task, Change]]:
    """Of every evaluation that both have, the change of what is printed of it."""
    return {
        name: {task: printed_change(score, before[task]) for task, score in scores.items() if task in before}
        for name, scores in step.evaluations.items()
        if (before := other.evaluations.get(name)) is not None
    }


def _number_changes(step: StepReport, baseline: StepReport) -> dict[str, dict[Task, dict[str, Change]]]:
    found: dict[str, dict[Task, dict[str, Change]]] = {}
    for name, scores in step.evaluations.items():
        before = baseline.evaluations.get(name, {})
        for task in scores.keys() & before.keys():
            if changed := number_changes(scores[task], before[task]):
                found.setdefault(name, {})[task] = changed
    return found


def _no_speed(step: StepReport, above: StepReport) -> list[str]:
    flags = []
    for task in TASKS:
        if task not in step.speed or task not in above.speed:
            continue
        work, before = step.macs_per_token.get(task, 0), above.macs_per_token.get(task, 0)
        now, then = step.speed[task], above.speed[task]
        margin = max(SPEED_NOISE, now.noise or 0.0, then.noise or 0.0)
        if work < before and now.ratio <= then.ratio * (1 + margin):
            flags.append(f"no_speed:{task}")
    return flags


def check_gate(gate: Gate, scores: Mapping[Task, Score], baseline: Mapping[Task, Score]) -> list[GateResult]:
    """The limits of a step's `stop_if` against what was measured. UsageError where a task has no score."""
    limits: dict[Task, float | None] = {
        "understanding": gate.understanding_drop,
        "generation": gate.generation_drop,
    }
    results = []
    for task, limit in limits.items():
        if limit is None:
            continue
        if task not in scores or task not in baseline:
            raise UsageError(
                asked=f"stop_if: {task}_drop: {limit}",
                found=f"no evaluation of the recipe scores {task}",
                do=f"add an evaluation that does, or leave {task}_drop out",
            )
        drop, low, high = worsening(scores[task], baseline[task])
        # 0.95 - 0.90 is above 0.05 in floating point; a drop of exactly the limit is allowed.
        results.append(GateResult(task=task, limit=limit, drop=drop, low=low, high=high, passed=low <= limit + 1e-9))
    return results


def write_report(report: Report, folder: Path) -> Path:
    """Write report.json by rename, so that it is never there half."""
    write_text_atomic(folder / REPORT, report.dumps())
    return folder / REPORT


def read_report(path: Path) -> Report:
    """The report of a run folder, or a report.json by itself. Raises UsageError."""
    file = path / REPORT if path.is_dir() else path
    asked = f"the report of {path}"
    if not file.is_file():
        if (said := unfinished(path, "the report")) is not None:
            raise UsageError(asked, *said)
        found = f"{path} is a folder without {REPORT}" if path.is_dir() else "no such file or folder"
        raise UsageError(asked, found, "name the output folder of a finished run, or its report.json")
    try:
        return Report.model_validate_json(read_text(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(asked, f"{file} cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        do = "was it written by another version of umcompress?"
        raise UsageError(
            asked, f"{file} is not a report: {where + ': ' if where else ''}{first['msg']}", do
        ) from error
