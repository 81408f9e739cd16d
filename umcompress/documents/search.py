"""A search: what each choice costs alone, the front of recipes within the budgets, and what running them came to."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from umcompress.documents.alone import AloneScore, Sizes
from umcompress.documents.base import Document, Task
from umcompress.documents.report import StepReport

FILE = "search.json"


class ChoiceScore(AloneScore):
    """A step of the recipe on one layer (or on all) of a component, made alone. `step` counts from 0.

    kept: the share that it keeps of what it cuts, where it says so.
    """

    step: NonNegativeInt
    component: str
    stack: str
    layers: tuple[NonNegativeInt, ...]
    kept: float | None = None


class Candidate(Document):
    """A recipe: its file in the folder, its size by budget as a share of the unpruned model, what it came to.

    expected: the sum of what its choices change alone.
    """

    name: str
    recipe: str
    shares: dict[str, float] = {}
    expected: dict[Task, float] = {}
    result: StepReport | None = None


class FrontPoint(Candidate):
    """The best choices for one weighting of the tasks, beside the uniform recipe of the same size, if there is one."""

    weights: dict[Task, NonNegativeFloat]
    choices: tuple[str, ...]
    uniform: Candidate | None = None


class Search(Document):
    """What `umcompress search` writes and prints.  score: what the choices were priced by."""

    format: Literal[1] = 1
    recipe: str
    model: str
    budgets: dict[str, float]
    loss: dict[str, Any] = {}
    score: Literal["distance", "loss"] = "loss"
    unpruned: dict[Task, float]
    sizes: Sizes
    choices: tuple[ChoiceScore, ...] = Field(min_length=1)
    front: tuple[FrontPoint, ...] = Field(min_length=1)
    notes: tuple[str, ...] = ()
