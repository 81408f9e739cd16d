"""Evaluations that compare a model with the one it was made from: where that one's results are, and making them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umcompress.documents.base import Task
from umcompress.documents.scores import Score
from umcompress.errors import UsageError
from umcompress.extend.evaluation_base import Evaluation
from umcompress.extend.users_code import call
from umcompress.models.source import Source, open_source

if TYPE_CHECKING:
    from umcompress.models.runner import Runner

REFERENCE = "reference"


def scored(
    evaluation: Evaluation, runner: Runner, out: Path, say: Callable[[str], None], source: Source,
    baseline: Path | None = None,
) -> dict[Task, Score]:
    """Run an evaluation.  `baseline`: what it left of the model before the first step, where there is one.

    An evaluation may name its own `reference`, a model: then its results are made once, next to the baseline's.
    """
    named = getattr(evaluation, "reference", None)
    if baseline is not None:
        reference = baseline / REFERENCE
        return _scores(evaluation, "compare", runner, out, say, reference if reference.is_dir() else baseline)
    if named is None:
        return _scores(evaluation, "run", runner, out, say)
    say(f"{evaluation.name}: the reference {named}")
    trust = source.trust_remote_code
    other = open_source(named, source.dtype, source.device, trust_remote_code=trust, sampling=source.sampling)
    _scores(evaluation, "run", other.runner(other.load()), out / REFERENCE, say)
    return _scores(evaluation, "compare", runner, out, say, out / REFERENCE)


def _scores(evaluation: Evaluation, method: str, runner: Runner, out: Path, *more: Any) -> dict[Task, Score]:
    out.mkdir(parents=True, exist_ok=True)
    return dict(call(evaluation, method, runner, out, *more))


def require_reference(evaluation: Evaluation) -> None:
    """UsageError where a model is evaluated by itself and the evaluation needs another one to compare it with."""
    if evaluation.compares and getattr(evaluation, "reference", None) is None:
        name = evaluation.name
        name_it = f"name it: --evaluation {name}:reference=MODEL; in a recipe"
        raise UsageError(
            f"the evaluation {name}", "it compares with the unpruned model, and none is named",
            f"{name_it if 'reference' in type(evaluation).model_fields else 'run it in a recipe: there'} "
            "the model before its first step is taken",
        )
