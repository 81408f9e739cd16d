"""What `plan` and `inspect` print, as documents: sizes, shapes and sites; no weights are read."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeInt

from umcompress.documents.base import Component, Document, Task
from umcompress.documents.plan import Declined
from umcompress.documents.report import Size


class SiteChange(Document):
    """One site that a step touches. `unit` is what is counted (`channels`, `query heads`, `block`)."""

    site: str
    component: Component
    unit: str
    before: NonNegativeInt
    after: NonNegativeInt
    note: str = ""


class TensorChange(Document):
    """A tensor's shape before and after a step; `after` is null when it is gone, `before` when it is new."""

    name: str
    before: tuple[int, ...] | None
    after: tuple[int, ...] | None


class PlanStep(Document):
    """What one step would do. `problem` says why it cannot, and then `after` equals `before`."""

    name: str
    pass_: str = Field(validation_alias="pass", serialization_alias="pass")
    options: dict[str, Any] = {}
    before: Size
    after: Size
    bytes_before: NonNegativeInt = 0
    bytes_after: NonNegativeInt = 0
    macs_before: dict[Task, NonNegativeInt] = {}
    macs_after: dict[Task, NonNegativeInt] = {}
    edits: NonNegativeInt = 0
    sites: tuple[SiteChange, ...] = ()
    tensors: tuple[TensorChange, ...] = ()
    declined: tuple[Declined, ...] = ()
    problem: str | None = None


class Memory(Document):
    """Bytes that a run is predicted to hold at most, without the activations of what it runs."""

    in_memory: NonNegativeInt
    out_of_core: NonNegativeInt


class PlanReport(Document):
    """What a recipe would do to a model. No weights were read, so which units stay is not decided here.

    problems: why `apply` would end although every step can be planned: data that are not there, or do not fit.
    loads_with: what would load the result, if layers come to be as they are planned here; why: why not transformers.
    result: which kind of plain model it is, and who reads such ones.
    """

    model: str
    recipe_name: str | None = None
    steps: tuple[PlanStep, ...]
    memory: Memory | None = None
    problems: tuple[str, ...] = ()
    loads_with: Literal["transformers", "diffusers", "umcompress"] | None = None
    why: str = ""
    result: str = ""
    notes: tuple[str, ...] = ()


class PlannedCell(Document):
    """A cell of a sweep on shapes alone: its sizes and work afterwards, or why it cannot be run.

    done: whether it is finished in the sweep's folder.
    """

    name: str
    values: dict[str, Any]
    parameters: Size | None = None
    bytes: NonNegativeInt = 0
    macs_per_token: dict[Task, NonNegativeInt] = {}
    problem: str | None = None
    done: bool = False


class SweepPlan(Document):
    """What `plan` says of a sweep.  before: the unpruned model; seconds: what the cells that are left will take.

    The time is known once a cell is finished in the sweep's folder.
    """

    model: str
    recipe_name: str
    axes: dict[str, tuple[Any, ...]]
    before: Size
    cells: tuple[PlannedCell, ...]
    seconds: float | None = None


class SiteInfo(Document):
    """A place that edits can act on. `shape` in words: `512 channels`, `6 heads of 32, 3 groups`."""

    path: str
    kind: str
    component: Component
    stack: str
    index: NonNegativeInt
    shape: str = ""


class Missing(Document):
    """A kind of site that a block does not have, and why."""

    path: str
    kind: str
    reason: str


class Inspection(Document):
    """A description of a model: its architecture, sizes and sites. `graph` is the text of one traced block."""

    model: str
    family: str
    stacks: dict[str, NonNegativeInt]
    parameters: Size
    bytes: Size
    macs_per_token: dict[Task, NonNegativeInt] = {}
    sites: tuple[SiteInfo, ...] = ()
    missing: tuple[Missing, ...] = ()
    graph: str | None = None
