"""What the main loop asks of the model of a run, however it is held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from umcompress.calibrate.statistics import Rework
from umcompress.documents.base import Task
from umcompress.documents.plan import CompressionRecord, Plan
from umcompress.documents.report import Speed
from umcompress.extend.pass_base import Proposal
from umcompress.graph.model_graph import ModelGraph
from umcompress.models.plain_folder import Plain
from umcompress.models.runner import Runner
from umcompress.models.source import Source
from umcompress.run.kept import Origins

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Written:
    """What a model was written as: a folder that needs no plans, or one with them and why.

    stored_in: the dtypes of weights that are stored in less than is computed in. notes: what the report is to say.
    """

    plain: Plain | str
    stored_in: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class HeldModel(Protocol):
    """The model of a run and how it is held: in memory, or as a skeleton whose weights stay on disk.

    dtype: what is computed in and written; None: each tensor has the one that it is stored in.
    """

    source: Source
    model: nn.Module
    dtype: str | None
    on_disk: bool

    def start_over(self) -> None:
        """Take the model anew, as its source has it."""

    def apply(self, plan: Plan, tensors: Mapping[str, Tensor]) -> None:
        """Take the model through a plan. `tensors`: the values that the plan sets."""

    def graph(self) -> ModelGraph:
        """The model traced, as it is now."""

    def feed(self, items: Sequence[Any]) -> None:
        """Run calibration items through the model."""

    def rework(self, name: str, items: Sequence[Any]) -> Rework | None:
        """For passes that measure again: makes an edited copy of the model. None where there is no room for one."""

    def as_written(self, proposal: Proposal, before: Sequence[Plan]) -> Proposal:
        """A proposal with its values as they will be once they were written. `before`: the plans before it."""

    def origins(self) -> Origins | None:
        """Where each tensor comes from; None where it is not followed, as nothing is measured twice."""

    def speed(self, runner: Runner, baseline: bool, tasks: Sequence[Task]) -> dict[Task, Speed]:
        """How fast these tasks run, against the unpruned model; nothing where the model cannot be timed."""

    def probe(self, in_place: Mapping[str, str] | None = None) -> dict[str, Tensor]:
        """Outputs on fixed inputs, which the written model must reproduce.

        in_place: out of core, blocks that need not run, each with the one whose outputs stand for its own.
        """

    def write(self, folder: Path, record: CompressionRecord) -> Written:
        """Write the model folder, as a whole or not at all."""
